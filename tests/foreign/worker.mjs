// A worker in another language: it pulls, claims, executes and settles jobs of one plug-in operation.
//   node worker.mjs URL ROOT WORKER_ID      SIGTERM drains it
import { connect, createInbox } from "@nats-io/transport-node";
import { Conflict, publish, readAll, readLast } from "./bus.mjs";
import { Lease, decide, isTerminal, moved, stopCause } from "./lease.mjs";

const [url, root, workerId] = process.argv.slice(2);
const CAPABILITIES = ["op-rehearse"];
const POOL = "default";
const HEARTBEAT_MS = 10_000;
const PARK_SECONDS = 5;
const TICK_MS = 250;
const EVENT_MS = 1000;
const CLAIM_TRIES = 8;

const fleet = root.replace(/\.v1$/, "").replaceAll(".", "_");
const names = {
  jobs: `${fleet.toUpperCase()}_JOBS`,
  records: `KV_${fleet}_jobs`,
  record: (id) => `$KV.${fleet}_jobs.${id}`,
  progress: (id) => `${root}.progress.${id}`,
};

const nc = await connect({ servers: url, token: process.env.H2KBUS_TOKEN, name: workerId, maxReconnectAttempts: -1 });
const running = new Map();
let draining = false;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function heartbeat() {
  await publish(nc, `$KV.${fleet}_workers.${workerId}`, {
    worker_id: workerId, hostname: "node", last_heartbeat: new Date().toISOString(), pool: POOL,
    capabilities: Object.fromEntries(CAPABILITIES.map((token) => [token, true])),
    max_concurrent_jobs: 1, free_slots: 1 - running.size, running_jobs: [...running.keys()], draining,
  });
}

/** The lanes that this worker can serve, the most urgent first. */
async function lanes() {
  const all = await readAll(nc, `KV_${fleet}_lanes`, `$KV.${fleet}_lanes.>`);
  const needs = (lane) => (lane.lane === "any" ? [] : lane.lane.split("+"));
  return all
    .filter((lane) => lane.pool === POOL && needs(lane).every((token) => CAPABILITIES.includes(token)))
    .map((lane) => ({ ...lane, over: Math.min(8, CAPABILITIES.length - needs(lane).length) }))
    .sort((a, b) => a.priority - b.priority);
}

/** One pull on each of these lanes, over one inbox. Resolves with the first delivery, or null once all have ended. */
function pull(served, body) {
  const inbox = createInbox();
  return new Promise((resolve) => {
    let open = served.length;
    let taken = null;
    const subscription = nc.subscribe(`${inbox}.*`, {
      callback: (_error, message) => {
        if (message.subject.startsWith(inbox)) open -= 1; // a status: 404 nothing there, 408 time is up, 409 not now
        else if (taken) message.respond("-NAK"); // more than there are slots: for another worker, at once
        else taken = message;
        if (taken || open <= 0) finish();
      },
    });
    const timer = setTimeout(() => finish(), (PARK_SECONDS + 2) * 1000);
    let finished = false;
    const finish = async () => {
      if (finished) return;
      finished = true;
      clearTimeout(timer);
      // Draining, not just unsubscribing: what the server has sent already is still handed back.
      await subscription.drain();
      resolve(taken);
    };
    for (const [index, lane] of served.entries()) {
      const request = { batch: 1, group: "workers", priority: lane.over, ...body };
      nc.publish(`$JS.API.CONSUMER.MSG.NEXT.${names.jobs}.${lane.consumer}`, JSON.stringify(request), { reply: `${inbox}.${index}` });
    }
  });
}

async function next() {
  const served = await lanes();
  for (const lane of served) {
    const message = await pull([lane], { no_wait: true });
    if (message) return message;
  }
  return served.length > 0 ? pull(served, { expires: PARK_SECONDS * 1e9 }) : sleep(500).then(() => null);
}

const nak = (message, seconds = 0) => message.respond(`-NAK {"delay":${Math.round(seconds * 1e9)}}`);

/** Takes the job, or answers for its message in another way and returns null. */
async function claim(message) {
  const { record, revision, lease_seconds: seconds = 60 } = message.json();
  const parts = message.reply.split(".");
  const delivered = Number(parts[parts.length === 9 ? 4 : 6]);
  const subject = names.record(record.job_id);
  let found = delivered > 1 ? await readLast(nc, names.records, subject) : { value: record, revision };
  for (let tries = 0; tries < CLAIM_TRIES && found && !found.value.publishing; tries += 1) {
    const decision = decide(found.value);
    if (decision === "leave" || decision === "drop") {
      if (decision === "leave") nak(message, seconds / 12);
      else message.respond("+ACK");
      return null;
    }
    try {
      const lease = await Lease.claim(nc, names, workerId, found, seconds);
      if (decision === "end") lease.cause = stopCause(found.value);
      return lease;
    } catch (error) {
      if (!(error instanceof Conflict)) throw error;
      found = await readLast(nc, names.records, subject);
    }
  }
  // A record that is gone, or whose outputs may have got their names, is for a worker that knows what to do.
  nak(message, 5);
  return null;
}

/** The operation itself: it works for some seconds, says how far it is, and ends early when it has to. */
async function execute(lease, progress) {
  const { seconds = 0, fail } = lease.record.spec.parameters;
  const began = performance.now();
  for (let done = 0; done < 1; done = seconds ? (performance.now() - began) / 1000 / seconds : 1) {
    progress.phase = "second";
    progress.progress_percent = Math.min(100, Math.round(done * 10_000) / 100);
    if (lease.lost || lease.cause) return null;
    await sleep(20);
  }
  return fail ? { code: fail, message: "made up" } : null;
}

/** Renews in time, tells of progress, and ends the attempt when the lease or its time has run out. */
function keep(lease, message, progress) {
  const began = performance.now();
  let told = "";
  let toldAt = 0;
  const tick = async () => {
    const { seconds } = lease.record.lease;
    const silent = (performance.now() - lease.confirmed) / 1000;
    if (lease.expired) lease.lost = true;
    if (performance.now() - began > lease.record.spec.execution_policy.timeout_seconds * 1000) {
      lease.cause ??= { code: "TIMEOUT", message: "the attempt took too long" };
    }
    const news = progress.phase && progress.progress_percent !== lease.record.progress?.progress_percent;
    if (silent > seconds / 3 || (news && silent > Math.min(5, seconds / 3))) {
      if (await lease.renew(progress.phase ? { ...progress } : null)) message.respond("+WPI");
    }
    const words = JSON.stringify(progress);
    if (progress.phase && words !== told && performance.now() - toldAt > EVENT_MS) {
      [told, toldAt] = [words, performance.now()];
      await lease.tell({ state: "PROGRESSING", ...progress });
    }
  };
  let busy = false;
  const timer = setInterval(() => {
    if (busy) return;
    busy = true;
    tick().catch((error) => console.error(`the bus was not told: ${error.message}`)).finally(() => { busy = false; });
  }, TICK_MS);
  return () => clearInterval(timer);
}

/** What the record becomes: its end, or another attempt. */
function outcome(record, error, seconds) {
  const policy = record.spec.execution_policy;
  const retryable = error && !["CANCELLED", "DEADLINE_EXCEEDED"].includes(error.code) && policy.idempotent;
  const reason = error && `${error.code}: ${error.message}`;
  if (error?.code === "DRAINED" && policy.idempotent) {
    const pending_reason = `waits for attempt ${record.attempt} after DRAINED`;
    return moved(record, ["RETRYING"], workerId, reason, {
      attempt: record.attempt - 1, lease: null, worker_id: null, progress: null, publishing: false, pending_reason,
      next_attempt_at: new Date().toISOString(),
    });
  }
  const errors = error ? [...record.errors, error] : record.errors;
  if (retryable && record.attempt <= policy.retry_count) {
    return moved(record, ["RETRYING"], workerId, reason, {
      errors, lease: null, worker_id: null, progress: null, publishing: false,
      pending_reason: `waits for attempt ${record.attempt + 1} after ${error.code}`,
      next_attempt_at: new Date(Date.now() + 2000).toISOString(),
    });
  }
  const state = !error ? "COMPLETED" : error.code === "CANCELLED" ? "CANCELLED" : "FAILED";
  const result = {
    job_id: record.job_id, status: state, completed_at: new Date().toISOString(), worker_id: workerId,
    retry_attempt: record.attempt - 1, metrics: { execution_seconds: seconds }, error, summary: { by: "node" },
  };
  return moved(record, [state], workerId, reason, { errors, result, lease: null, publishing: false, pending_reason: null, next_attempt_at: null });
}

async function work(message) {
  const lease = await claim(message);
  if (!lease) return;
  running.set(lease.record.job_id, lease);
  const progress = {};
  const began = performance.now();
  await lease.tell({ state: "RUNNING", phase: "running", progress_percent: 0 });
  const release = keep(lease, message, progress);
  let error;
  try {
    const last = lease.record.errors.at(-1) ?? { code: "WORKER_LOST", message: "the last worker was lost" };
    error = lease.cause ?? (lease.mayExecute ? await execute(lease, progress) : last);
  } catch (defect) {
    error = { code: "INTERNAL", message: String(defect) };
  }
  release();
  const settled = await lease.settle((record) => outcome(record, lease.cause ?? error, (performance.now() - began) / 1000));
  running.delete(lease.record.job_id);
  if (!settled) return; // somebody else's by now: not even an acknowledgement is ours to give
  const { record } = lease;
  const percent = record.state === "COMPLETED" ? 100 : record.progress?.progress_percent ?? 0;
  await lease.tell({ state: record.state, phase: record.state.toLowerCase(), progress_percent: percent, message: record.result?.error?.message ?? "" });
  if (isTerminal(record)) message.respond("+ACK");
  else nak(message, Math.max(0, (Date.parse(record.next_attempt_at) - Date.now()) / 1000));
}

// A hint that a job has changed: the renewal finds out what is true.
nc.subscribe(`${root}.control.${workerId}`, {
  callback: (_error, message) => running.get(message.string())?.renew(null).catch((error) => console.error(error.message)),
});

process.on("SIGTERM", () => {
  draining = true;
  for (const lease of running.values()) lease.cause ??= { code: "DRAINED", message: "the worker was stopped" };
});

await heartbeat();
const beating = setInterval(() => heartbeat().catch((error) => console.error(`heartbeat failed: ${error.message}`)), HEARTBEAT_MS);
console.log("ready");
while (!draining) {
  try {
    const message = await next();
    if (message && draining) nak(message);
    else if (message) await work(message);
  } catch (error) {
    console.error(`it comes again: ${error.message}`);
    await sleep(500);
  }
}
clearInterval(beating);
await publish(nc, `$KV.${fleet}_workers.${workerId}`, undefined, { deleted: true });
await nc.drain();
