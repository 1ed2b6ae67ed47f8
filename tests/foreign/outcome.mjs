// What a record becomes when its attempt has ended: the job's end, or another attempt.
import { moved } from "./lease.mjs";

const RETRYABLE = ["TOOL_FAILED", "NO_SPACE", "TIMEOUT", "INTERNAL", "WORKER_LOST", "DRAINED"];
const BACKOFF_MS = 2000;
const FREE = { lease: null, publishing: false };

export function outcome(record, error, seconds) {
  const { idempotent, retry_count: retries } = record.spec.execution_policy;
  if (!error) return ended(record, "COMPLETED", null, seconds);
  if (error.code === "CANCELLED") return ended(record, "CANCELLED", error, seconds);
  if (error.code === "DRAINED" && idempotent) return again(record, error, { attempt: record.attempt - 1 }, 0);
  if (RETRYABLE.includes(error.code) && idempotent && record.attempt <= retries) {
    return again(record, error, { errors: [...record.errors, error] }, BACKOFF_MS);
  }
  return ended(record, "FAILED", error, seconds);
}

function again(record, error, changes, delay) {
  const attempt = (changes.attempt ?? record.attempt) + 1;
  return moved(record, ["RETRYING"], record.worker_id, `${error.code}: ${error.message}`, {
    ...FREE,
    ...changes,
    worker_id: null,
    progress: null,
    pending_reason: `waits for attempt ${attempt} after ${error.code}`,
    next_attempt_at: new Date(Date.now() + delay).toISOString(),
  });
}

function ended(record, status, error, seconds) {
  const result = {
    job_id: record.job_id,
    status,
    completed_at: new Date().toISOString(),
    worker_id: record.worker_id,
    retry_attempt: record.attempt - 1,
    metrics: { execution_seconds: seconds },
    error,
    summary: { by: "node" },
  };
  const errors = error ? [...record.errors, error] : record.errors;
  const reason = error && `${error.code}: ${error.message}`;
  return moved(record, [status], record.worker_id, reason, {
    ...FREE,
    result,
    errors,
    pending_reason: null,
    next_attempt_at: null,
  });
}
