// Reading and writing the bus by its contract alone: direct gets, and publishes that compare and set.
import { createInbox, headers } from "@nats-io/transport-node";

const ANSWER_MS = 5000;
const LOST_RACES = [10071, 10164];

/** Somebody else wrote the record first. */
export class Conflict extends Error {}

/** The server's answer, or an error if it was none. */
export async function publish(nc, subject, value, options = {}) {
  const head = headers();
  if (options.expected !== undefined) head.set("Nats-Expected-Last-Subject-Sequence", String(options.expected));
  if (options.deleted) head.set("KV-Operation", "DEL");
  const body = value === undefined ? "" : JSON.stringify(value);
  const answer = (await nc.request(subject, body, { headers: head, timeout: ANSWER_MS })).json();
  if (LOST_RACES.includes(answer.error?.err_code)) throw new Conflict(subject);
  if (answer.error) throw new Error(`${subject}: ${answer.error.description}`);
  return answer.seq;
}

/** The newest message under a subject: its value and revision, or null. */
export async function readLast(nc, stream, subject) {
  const found = await nc.request(`$JS.API.DIRECT.GET.${stream}.${subject}`, "", { timeout: ANSWER_MS });
  if (found.headers.code === 404 || found.data.length === 0) return null;
  return {
    value: found.json(),
    revision: Number(found.headers.get("Nats-Sequence")),
  };
}

/** Every value under a subject filter, oldest first: batches of direct gets, and no consumer. */
export async function readAll(nc, stream, filter) {
  const values = [];
  for (let seq = 1; ;) {
    const batch = await readBatch(nc, stream, {
      next_by_subj: filter,
      seq,
      batch: 500,
    });
    if (batch.length === 0) return values;
    values.push(...batch.filter((message) => message.data.length > 0).map((message) => message.json()));
    seq = Number(batch.at(-1).headers.get("Nats-Sequence")) + 1;
  }
}

function readBatch(nc, stream, query) {
  const reply = createInbox();
  return new Promise((resolve, reject) => {
    const found = [];
    const settle = (done) => {
      clearTimeout(timer);
      subscription.unsubscribe();
      done();
    };
    const timer = setTimeout(() => settle(() => reject(new Error(`no answer from ${stream}`))), ANSWER_MS);
    const subscription = nc.subscribe(reply, {
      callback: (error, message) => {
        if (error) settle(() => reject(error));
        else if (message.headers.has("Nats-Sequence")) found.push(message);
        else settle(() => resolve(found)); // 204 at the end of a batch, 404 if there is nothing
      },
    });
    nc.publish(`$JS.API.DIRECT.GET.${stream}`, JSON.stringify(query), {
      reply,
    });
  });
}
