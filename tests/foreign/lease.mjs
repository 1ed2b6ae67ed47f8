// Holding one job: its claim, its renewals, and its settlement, each one compare-and-set of its record.
import { Conflict, publish, readLast } from "./bus.mjs";

const SEQ_STRIDE = 10_000;
const LEASED = ["ASSIGNED", "RUNNING", "PROGRESSING"];
const TERMINAL = ["COMPLETED", "FAILED", "CANCELLED"];
const CLAIM_PATHS = {
  QUEUED: ["ASSIGNED", "RUNNING"],
  RETRYING: ["QUEUED", "ASSIGNED", "RUNNING"],
};

export const isTerminal = (record) => TERMINAL.includes(record.state);

/** The event that tells of a record as it was written at a revision. To send it twice is harmless. */
export function milestone(record, revision) {
  return {
    job_id: record.job_id,
    seq: revision * SEQ_STRIDE,
    timestamp: record.updated_at,
    state: record.state,
    phase: record.state.toLowerCase(),
    progress_percent: record.state === "COMPLETED" ? 100 : (record.progress?.progress_percent ?? 0),
    message: record.result?.error?.message ?? "",
    attempt: record.attempt,
    worker_id: record.worker_id,
  };
}

/** What a delivered message means, given its job's record. */
export function decide(record) {
  if (isTerminal(record)) return "drop";
  if (LEASED.includes(record.state) || !(record.state in CLAIM_PATHS)) return "leave";
  return stopCause(record) ? "end" : "claim";
}

/** Why whoever holds the job has to stop, if anybody asks for that. */
export function stopCause(record) {
  if (record.cancel_requested) return { code: "CANCELLED", message: "cancelled on request" };
  if (record.deadline_exceeded)
    return {
      code: "DEADLINE_EXCEEDED",
      message: "the job's deadline has passed",
    };
  return null;
}

/** The record after these moves, each with a line of the audit trail; fields that are not known here stay. */
export function moved(record, states, by, reason, changes) {
  const at = new Date().toISOString();
  const trail = [...record.transitions];
  let state = record.state;
  for (const to of states) {
    trail.push({
      from: state,
      to,
      at,
      by,
      reason: to === states[0] ? reason : null,
    });
    state = to;
  }
  return { ...record, ...changes, state, transitions: trail, updated_at: at };
}

export class Lease {
  /** Raises Conflict if somebody else was first. */
  static async claim(nc, names, workerId, found, seconds) {
    const lease = new Lease(nc, names, workerId);
    const record = moved(found.value, CLAIM_PATHS[found.value.state], workerId, null, {
      attempt: found.value.attempt + 1,
      worker_id: workerId,
      lease: { worker_id: workerId, token: found.revision, seconds },
      progress: null,
      next_attempt_at: null,
      pending_reason: null,
    });
    await lease.write(record, found.revision);
    return lease;
  }

  constructor(nc, names, workerId) {
    Object.assign(this, {
      nc,
      names,
      workerId,
      lost: false,
      cause: null,
      sent: 0,
      confirmed: 0,
      chain: Promise.resolve(),
    });
  }

  get mayExecute() {
    const policy = this.record.spec.execution_policy;
    return this.record.attempt <= (policy.idempotent ? policy.retry_count + 1 : 1);
  }

  /** Renewals, events and the settlement follow each other: none of them may write from a revision of yesterday. */
  alone(work) {
    const done = this.chain.then(work);
    this.chain = done.catch(() => {});
    return done;
  }

  /** From before the server was asked: it may have counted from then. */
  async write(record, expected) {
    const began = performance.now();
    const subject = this.names.record(record.job_id);
    let revision;
    try {
      revision = await publish(this.nc, subject, record, { expected });
    } catch (error) {
      if (error instanceof Conflict) throw error;
      // The answer got lost: what stands there says whether the write did.
      const found = await readLast(this.nc, this.names.records, subject);
      if (JSON.stringify(found?.value) !== JSON.stringify(record)) throw error;
      revision = found.revision;
    }
    Object.assign(this, { record, revision, confirmed: began, sent: 0 });
  }

  /** What stands in the bucket decides after a lost race: somebody else's lease, a wish to stop, or nothing. */
  async reread() {
    const found = await readLast(this.nc, this.names.records, this.names.record(this.record.job_id));
    if (found?.value.lease?.token !== this.record.lease.token || found.value.lease.worker_id !== this.workerId) {
      this.lost = true;
      return;
    }
    Object.assign(this, {
      record: found.value,
      revision: found.revision,
      sent: 0,
    });
    this.cause ??= stopCause(found.value);
  }

  renew(progress) {
    return this.alone(async () => {
      if (this.lost) return;
      const begins = progress && this.record.state === "RUNNING" ? ["PROGRESSING"] : [];
      try {
        await this.write(moved(this.record, begins, this.workerId, null, progress ? { progress } : {}), this.revision);
        return true;
      } catch (error) {
        if (!(error instanceof Conflict)) throw error;
        await this.reread();
        return false;
      }
    });
  }

  /** Numbered under the revision that this worker wrote last: a stale worker's events sort before its successor's. */
  tell(event) {
    return this.alone(async () => {
      if (this.lost) return;
      const { job_id, attempt, worker_id } = this.record;
      const seq = this.revision * SEQ_STRIDE + ++this.sent;
      const timestamp = new Date().toISOString();
      await publish(this.nc, this.names.progress(job_id), { job_id, seq, timestamp, attempt, worker_id, ...event });
    });
  }

  /** Says what the record says now. */
  tellMilestone() {
    return this.alone(() =>
      publish(this.nc, this.names.progress(this.record.job_id), milestone(this.record, this.revision)),
    );
  }

  /** Writes the end of the attempt, again and again until it stands or the lease is lost. */
  async settle(build) {
    while (!this.lost) {
      try {
        await this.alone(() => this.write(build(this.record), this.revision));
        return true;
      } catch (error) {
        if (error instanceof Conflict) await this.alone(() => this.reread());
        else if (this.expired) this.lost = true;
        else await new Promise((resolve) => setTimeout(resolve, 500));
      }
    }
    return false;
  }

  get expired() {
    return performance.now() - this.confirmed > this.record.lease.seconds * 1000 * 0.7;
  }
}
