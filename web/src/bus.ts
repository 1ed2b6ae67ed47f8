// The connection to NATS: reads by direct gets, commands with the server's acknowledgement, and no consumers.
import {
  AuthorizationError,
  PermissionViolationError,
  UserAuthenticationExpiredError,
  NoRespondersError,
  createInbox,
  credsAuthenticator,
  headers,
  nkeyAuthenticator,
  tokenAuthenticator,
  usernamePasswordAuthenticator,
  wsconnect,
} from "@nats-io/nats-core";
import type { Authenticator, Msg, MsgHdrs, NatsConnection, Subscription } from "@nats-io/nats-core";
import { Contract } from "./contract";

const ANSWER_MS = 5000;
const BATCH = 500;
const BATCH_BYTES = 4 * 1024 * 1024;

export interface SignIn {
  kind: "none" | "token" | "password" | "nkey" | "creds";
  user: string;
  secret: string;
}

export interface Place {
  websocket: string;
  root: string;
  submitter: string;
  inboxPrefix: string;
  apiPrefix: string;
}

export interface Stored {
  subject: string;
  seq: number;
  time: string;
  data: Uint8Array;
}

/** What one read brought, and whether the stream held more at the end of it. */
interface Batch {
  messages: Stored[];
  hasMore: boolean;
}

export type Query = Record<string, unknown>;

/** What the bus refused or could not do, in words for people. */
export class BusError extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly advice = "",
  ) {
    super(message);
  }
}

/** What a reading or a command ended with; anything unforeseen is a defect of the page. */
export const asBusError = (error: unknown) =>
  error instanceof BusError
    ? error
    : new BusError("INTERNAL", String(error), "This is a defect of the page: report it.");

const denied = (subject: string) =>
  new BusError(
    "PERMISSION_DENIED",
    `This user may not use ${subject}.`,
    "Ask the bus's administrator for the role that this needs.",
  );

export class Bus {
  readonly contract: Contract;
  private expired = false;
  private readonly pending = new Map<string, Set<(error: BusError) => void>>();

  private constructor(
    private readonly nc: NatsConnection,
    readonly place: Place,
  ) {
    this.contract = new Contract(place.root);
  }

  static async open(place: Place, who: SignIn): Promise<Bus> {
    try {
      const nc = await wsconnect({
        servers: place.websocket,
        name: "h2kbus-page",
        authenticator: authenticator(who),
        timeout: ANSWER_MS,
        pingInterval: 20_000,
        maxReconnectAttempts: -1,
        reconnectTimeWait: 1000,
        ignoreClusterUpdates: true,
        inboxPrefix: place.inboxPrefix || "_INBOX",
      });
      return new Bus(nc, place);
    } catch (error) {
      throw connectError(error, place.websocket);
    }
  }

  /** Reports whether the connection stands, until it ends; then why, if somebody else ended it. */
  async watch(onChange: (connected: boolean) => void): Promise<BusError | null> {
    void this.listen(onChange);
    const error = await this.nc.closed();
    if (this.expired) return expiredError();
    return error ? connectError(error, this.place.websocket) : null;
  }

  close = () => this.nc.close();

  subscribe(subject: string, onMessage: (message: Msg) => void): Subscription {
    return this.nc.subscribe(subject, {
      callback: (error, message) => {
        if (!error) onMessage(message);
      },
    });
  }

  async api<T>(name: string, body?: Query): Promise<T> {
    const answer = await this.ask(`${this.place.apiPrefix}.${name}`, body ? JSON.stringify(body) : "");
    const reply = answer.json<T & { error?: { description: string } }>();
    if (reply.error) throw new BusError("BUS_ERROR", `${name}: ${reply.error.description}`);
    return reply;
  }

  /** The newest message under a subject, or null when there is none. */
  async last(stream: string, subject: string): Promise<Stored | null> {
    const query = JSON.stringify({ last_by_subj: subject });
    const answer = await this.ask(`${this.place.apiPrefix}.DIRECT.GET.${stream}`, query);
    return answer.headers?.code === 404 ? null : stored(answer);
  }

  /** Every message that the stream holds now and a query names, oldest first. */
  async *read(stream: string, query: Query): AsyncGenerator<Stored> {
    let next = query;
    for (;;) {
      const { messages, hasMore } = await this.batch(stream, next);
      yield* messages;
      const last = messages.at(-1);
      if (!last || !hasMore) return;
      next = { ...query, seq: last.seq + 1 };
    }
  }

  /** One direct get of many messages. */
  batch(stream: string, query: Query): Promise<Batch> {
    const subject = `${this.place.apiPrefix}.DIRECT.GET.${stream}`;
    const body = JSON.stringify({ batch: BATCH, max_bytes: BATCH_BYTES, ...query });
    const reply = createInbox(this.place.inboxPrefix || "_INBOX");
    return new Promise<Batch>((resolve, reject) => {
      const messages: Stored[] = [];
      const settle = (done: () => void) => {
        clearTimeout(timer);
        this.pending.get(subject)?.delete(fail);
        subscription.unsubscribe();
        done();
      };
      const fail = (error: BusError) => settle(() => reject(error));
      const subscription = this.nc.subscribe(reply, {
        callback: (error, message) => {
          if (error) fail(denied(reply));
          else if (message.headers?.has("Nats-Sequence")) messages.push(stored(message));
          else if (message.headers?.code === 503) fail(notProvisioned(stream));
          else settle(() => resolve({ messages, hasMore: message.headers?.get("Nats-Num-Pending") !== "0" }));
        },
      });
      const timer = setTimeout(() => fail(new BusError("BUS_TIMEOUT", `No answer from ${stream}.`)), ANSWER_MS);
      if (!this.pending.has(subject)) this.pending.set(subject, new Set());
      this.pending.get(subject)?.add(fail);
      this.nc.publish(subject, body, { reply });
    });
  }

  /** Stores a message. True unless the stream holds one under this subject already. */
  async publish(subject: string, body: string, options?: MsgHdrs): Promise<boolean> {
    const answer = await this.ask(subject, body, options);
    const { error } = answer.json<{ error?: { err_code: number; description: string } }>();
    if (!error) return true;
    if (error.description.includes("per subject")) return false;
    throw new BusError(String(error.err_code), error.description);
  }

  /** Whether this user may give commands: one is sent that the stream has to refuse. */
  async mayCommand(): Promise<boolean> {
    const impossible = headers();
    impossible.set("Nats-Expected-Stream", "none");
    try {
      await this.publish(this.contract.command(this.place.submitter, "cancel", "none"), "", impossible);
    } catch (error) {
      return !(error instanceof BusError && error.code === "PERMISSION_DENIED");
    }
    return true;
  }

  private async ask(subject: string, body = "", options?: MsgHdrs): Promise<Msg> {
    try {
      return await this.nc.request(subject, body, { timeout: ANSWER_MS, ...(options && { headers: options }) });
    } catch (error) {
      throw requestError(error, subject);
    }
  }

  private async listen(onChange: (connected: boolean) => void): Promise<void> {
    for await (const status of this.nc.status()) {
      if (status.type === "disconnect") onChange(false);
      if (status.type === "reconnect") onChange(true);
      if (status.type === "error" && status.error instanceof UserAuthenticationExpiredError) this.expired = true;
      if (status.type === "error" && status.error instanceof PermissionViolationError) {
        const refused = denied(status.error.subject);
        for (const fail of [...(this.pending.get(status.error.subject) ?? [])]) fail(refused);
      }
    }
  }
}

function authenticator(who: SignIn): Authenticator[] {
  const bytes = new TextEncoder().encode(who.secret.trim());
  switch (who.kind) {
    case "none":
      return [];
    case "token":
      return [tokenAuthenticator(who.secret.trim())];
    case "password":
      return [usernamePasswordAuthenticator(who.user, who.secret)];
    case "nkey":
      return [nkeyAuthenticator(bytes)];
    case "creds":
      // Its reader wants the last line to end.
      return [credsAuthenticator(new TextEncoder().encode(`${who.secret.trim()}\n`))];
  }
}

const expiredError = () =>
  new BusError("PERMISSION_DENIED", "These credentials have expired.", "Sign in again with new ones.");

function connectError(error: unknown, address: string): BusError {
  if (error instanceof UserAuthenticationExpiredError) return expiredError();
  if (error instanceof AuthorizationError || /authoriz|authentication/i.test(causes(error))) {
    return new BusError(
      "PERMISSION_DENIED",
      "The bus refuses these credentials.",
      "Check them, or get new ones: `h2kbus up` makes a new token at each start.",
    );
  }
  if (/seed|nkey|creds|credentials|checksum|decode|encoding|prefix/i.test(causes(error))) {
    return new BusError(
      "BAD_SETTINGS",
      "These are no credentials of that kind.",
      "Paste the whole file or seed, unchanged.",
    );
  }
  return new BusError(
    "BUS_UNREACHABLE",
    `No bus answers at ${address}.`,
    `Check that it runs, that its WebSocket listener is on, and that it accepts pages from ${location.origin}.`,
  );
}

function causes(error: unknown): string {
  const words: string[] = [];
  for (let each = error; each instanceof Error; each = each.cause) words.push(`${each.name} ${each.message}`);
  return words.join(" ");
}

function requestError(error: unknown, subject: string): BusError {
  for (let each = error; each instanceof Error; each = each.cause) {
    if (each instanceof PermissionViolationError) return denied(each.subject);
    if (each instanceof NoRespondersError) return notProvisioned(subject);
  }
  return new BusError("BUS_TIMEOUT", `The bus did not answer for ${subject}.`, "Try again in a moment.");
}

const notProvisioned = (name: string) =>
  new BusError(
    "NOT_PROVISIONED",
    `This bus has nothing at ${name}.`,
    "Start `h2kbus scheduler` once: it makes the streams.",
  );

function stored(message: Msg): Stored {
  const head = message.headers;
  return {
    subject: head?.get("Nats-Subject") ?? "",
    seq: Number(head?.get("Nats-Sequence") ?? 0),
    time: head?.get("Nats-Time-Stamp") ?? "",
    data: message.data,
  };
}

const text = new TextDecoder();

/** A stored message as JSON; null for what is empty or no JSON. */
export function parsed<T>(data: Uint8Array): T | null {
  try {
    return data.length ? (JSON.parse(text.decode(data)) as T) : null;
  } catch {
    return null;
  }
}
