// A worker in another language: it pulls, claims, executes and settles jobs of one plug-in operation.
//   node worker.mjs URL ROOT WORKER_ID      SIGTERM drains it
import { connect } from "@nats-io/transport-node";
import { Conflict, publish, readLast } from "./bus.mjs";
import { Lease, decide, isTerminal, milestone, stopCause } from "./lease.mjs";
import { outcome } from "./outcome.mjs";
import { next } from "./pull.mjs";

const [url, root, workerId] = process.argv.slice(2);
const CAPABILITIES = ["op-rehearse"];
const POOL = "default";
const HEARTBEAT_MS = 10_000;
const TICK_MS = 250;
const EVENT_MS = 1000;
const NEWS_SECONDS = 5;
const CLAIM_TRIES = 8;
const PAUSE_MS = 500;

const fleet = root.replace(/\.v1$/, "").replaceAll(".", "_");
const names = {
  jobs: `${fleet.toUpperCase()}_JOBS`,
  records: `KV_${fleet}_jobs`,
  record: (id) => `$KV.${fleet}_jobs.${id}`,
  lanes: `KV_${fleet}_lanes`,
  allLanes: `$KV.${fleet}_lanes.>`,
  worker: `$KV.${fleet}_workers.${workerId}`,
  progress: (id) => `${root}.progress.${id}`,
};

const nc = await connect({ servers: url, token: process.env.H2KBUS_TOKEN, name: workerId, maxReconnectAttempts: -1 });
const running = new Map();
let draining = false;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const nak = (message, seconds) => message.respond(`-NAK {"delay":${Math.round(seconds * 1e9)}}`);
const warn = (what) => (error) => console.error(`${what}: ${error.message}`);

function heartbeat() {
  return publish(nc, names.worker, {
    worker_id: workerId,
    hostname: "node",
    last_heartbeat: new Date().toISOString(),
    pool: POOL,
    capabilities: Object.fromEntries(CAPABILITIES.map((token) => [token, true])),
    max_concurrent_jobs: 1,
    free_slots: 1 - running.size,
    running_jobs: [...running.keys()],
    draining,
  });
}

/** Takes the job, or answers for its message in another way and returns null. */
async function claim(message) {
  const { record, revision, lease_seconds: seconds = 60 } = message.json();
  const parts = message.reply.split(".");
  const delivered = Number(parts[parts.length === 9 ? 4 : 6]);
  const subject = names.record(record.job_id);
  let found = delivered > 1 ? await readLast(nc, names.records, subject) : { value: record, revision };
  for (let tries = 0; tries < CLAIM_TRIES && found; tries += 1) {
    const decision = decide(found.value);
    if (decision === "drop") return drop(message, found);
    if (decision === "leave") {
      nak(message, seconds / 12);
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
  nak(message, seconds / 12);
  return null;
}

/** The job has ended; whoever ended it may have died before it could say so. */
async function drop(message, { value, revision }) {
  await publish(nc, names.progress(value.job_id), milestone(value, revision));
  message.respond("+ACK");
  return null;
}

/** The operation itself: it works for some seconds, says how far it is, and ends early when it has to. */
async function execute(lease, progress) {
  const { seconds = 0, fail } = lease.record.spec.parameters;
  const began = performance.now();
  let done = 0;
  while (done < 1 && !lease.lost && !lease.cause) {
    progress.phase = "second";
    progress.progress_percent = Math.round(done * 10_000) / 100;
    await sleep(20);
    done = Math.min(1, (performance.now() - began) / 1000 / Math.max(seconds, 0.001));
  }
  return fail ? { code: fail, message: "made up" } : null;
}

/** Renews in time, tells of progress, and ends the attempt when the lease or its time has run out. */
function keep(lease, message, progress) {
  const began = performance.now();
  const limit = lease.record.spec.execution_policy.timeout_seconds * 1000;
  const third = lease.record.lease.seconds / 3;
  let [told, toldAt, busy] = ["", 0, false];
  const serve = async () => {
    const silent = (performance.now() - lease.confirmed) / 1000;
    const news = progress.phase && progress.progress_percent !== lease.record.progress?.progress_percent;
    if (silent > third || (news && silent > Math.min(NEWS_SECONDS, third))) {
      if (await lease.renew(progress.phase ? { ...progress } : null)) message.respond("+WPI");
    }
    const words = JSON.stringify(progress);
    if (progress.phase && words !== told && performance.now() - toldAt > EVENT_MS) {
      [told, toldAt] = [words, performance.now()];
      await lease.tell({ state: "PROGRESSING", ...progress });
    }
  };
  const timer = setInterval(() => {
    if (lease.expired) lease.lost = true;
    if (performance.now() - began > limit) lease.cause ??= { code: "TIMEOUT", message: "the attempt took too long" };
    if (busy) return;
    busy = true;
    serve()
      .catch(warn("the bus was not told"))
      .finally(() => (busy = false));
  }, TICK_MS);
  return () => clearInterval(timer);
}

/** One attempt: null if it is done, or why it is not. */
async function attempt(lease, progress) {
  if (lease.cause) return lease.cause;
  if (!lease.mayExecute)
    return lease.record.errors.at(-1) ?? { code: "WORKER_LOST", message: "the last worker was lost" };
  try {
    return await execute(lease, progress);
  } catch (defect) {
    return { code: "INTERNAL", message: String(defect) };
  }
}

async function work(message) {
  const lease = await claim(message);
  if (!lease) return;
  const jobId = lease.record.job_id;
  const [progress, began] = [{}, performance.now()];
  running.set(jobId, lease);
  const release = keep(lease, message, progress);
  try {
    await lease.tellMilestone().catch(warn("its start was not told"));
    const error = await attempt(lease, progress);
    release();
    const seconds = (performance.now() - began) / 1000;
    if (await lease.settle((record) => outcome(record, lease.cause ?? error, seconds))) await conclude(lease, message);
  } finally {
    release();
    running.delete(jobId);
  }
}

/** Only now, and only for a job that this worker has settled: the last event, then the answer for the message. */
async function conclude(lease, message) {
  const { record } = lease;
  await lease.tellMilestone();
  if (isTerminal(record)) message.respond("+ACK");
  else nak(message, Math.max(0, (Date.parse(record.next_attempt_at) - Date.now()) / 1000));
}

// A hint that a job has changed: the renewal finds out what is true.
nc.subscribe(`${root}.control.${workerId}`, {
  callback: (_error, message) => running.get(message.string())?.renew(null).catch(warn("the lease was not renewed")),
});

process.on("SIGTERM", () => {
  draining = true;
  for (const lease of running.values()) lease.cause ??= { code: "DRAINED", message: "the worker was stopped" };
});

await heartbeat();
const beating = setInterval(() => heartbeat().catch(warn("heartbeat failed")), HEARTBEAT_MS);
console.log("ready");
while (!draining) {
  try {
    const message = await next(nc, names, POOL, CAPABILITIES);
    if (message && draining) nak(message, 0);
    else if (message) await work(message);
  } catch (error) {
    warn("it comes again")(error);
    await sleep(PAUSE_MS);
  }
}
clearInterval(beating);
await publish(nc, names.worker, undefined, { deleted: true });
await nc.drain();
