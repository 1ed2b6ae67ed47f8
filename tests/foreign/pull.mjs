// Pulling jobs: the lanes that this worker can serve, lane by lane while there is work, then all of them at once.
import { createInbox } from "@nats-io/transport-node";
import { readAll } from "./bus.mjs";

const PARK_SECONDS = 5;
const ANSWER_SECONDS = 2;

/** The next job's message, or null when there was none for a while. */
export async function next(nc, names, pool, capabilities) {
  const served = await lanes(nc, names, pool, capabilities);
  for (const lane of served) {
    const message = await pull(nc, names, [lane], { no_wait: true });
    if (message) return message;
  }
  if (served.length > 0) return pull(nc, names, served, { expires: PARK_SECONDS * 1e9 });
  await new Promise((resolve) => setTimeout(resolve, 500));
  return null;
}

/** The most urgent first; `over` is how far this worker is over-qualified for a lane. */
async function lanes(nc, names, pool, capabilities) {
  const needs = (lane) => (lane.lane === "any" ? [] : lane.lane.split("+"));
  const all = await readAll(nc, names.lanes, names.allLanes);
  return all
    .filter((lane) => lane.pool === pool && needs(lane).every((token) => capabilities.includes(token)))
    .map((lane) => ({ ...lane, over: Math.min(8, capabilities.length - needs(lane).length) }))
    .sort((a, b) => a.priority - b.priority);
}

/** One pull on each of these lanes, over one inbox: the first delivery, or null once all have ended. */
function pull(nc, names, served, body) {
  const inbox = createInbox();
  return new Promise((resolve) => {
    let open = served.length;
    let taken = null;
    let finished = false;
    const finish = async () => {
      if (finished) return;
      finished = true;
      clearTimeout(timer);
      // Draining, not just unsubscribing: what the server has sent already is still handed back.
      await subscription.drain();
      resolve(taken);
    };
    const subscription = nc.subscribe(`${inbox}.*`, {
      callback: (_error, message) => {
        // A status carries the inbox as its subject: 404 nothing there, 408 time is up, 409 not now.
        if (message.subject.startsWith(inbox)) open -= 1;
        else if (taken) message.respond("-NAK");
        else taken = message;
        if (taken || open <= 0) finish();
      },
    });
    const timer = setTimeout(finish, (PARK_SECONDS + ANSWER_SECONDS) * 1000);
    for (const [index, lane] of served.entries()) {
      const request = { batch: 1, group: "workers", priority: lane.over, ...body };
      const subject = `$JS.API.CONSUMER.MSG.NEXT.${names.jobs}.${lane.consumer}`;
      nc.publish(subject, JSON.stringify(request), { reply: `${inbox}.${index}` });
    }
  });
}
