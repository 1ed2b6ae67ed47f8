// What the page asks of the scheduler: submit and cancel.
import { type Bus, BusError, parsed } from "./bus";
import { JOB_ID, type Refusal, adviceFor, newJobId } from "./contract";
import type { Model } from "./model";

const VERDICT_MS = 5000;
const LOOK_MS = 100;

export interface Draft {
  operation: string;
  image: string;
  outputDir: string;
  priority: string;
  jobId: string;
  parameters: string;
}

export type Mistakes = Partial<Record<keyof Draft, string>>;

/** What is wrong with a draft, by field; the scheduler finds the rest. */
export function mistakesIn(draft: Draft): Mistakes {
  const mistakes: Mistakes = {};
  if (!/^[a-z][a-z0-9_]{0,63}$/.test(draft.operation))
    mistakes.operation = "Give the name of an operation: a-z, 0-9 and _.";
  if (!draft.image.startsWith("/")) mistakes.image = "Give an absolute path on the worker's host.";
  if (!draft.outputDir.startsWith("/")) mistakes.outputDir = "Give an absolute path on the worker's host.";
  if (draft.jobId && !JOB_ID.test(draft.jobId)) mistakes.jobId = "Use 1 to 128 of A-Z, a-z, 0-9, _ and -.";
  const priority = Number(draft.priority);
  if (!Number.isInteger(priority) || priority < 1 || priority > 10) mistakes.priority = "Give a number from 1 to 10.";
  const parameters = readParameters(draft.parameters);
  if (typeof parameters === "string") mistakes.parameters = parameters;
  return mistakes;
}

function readParameters(words: string): Record<string, unknown> | string {
  try {
    const value: unknown = JSON.parse(words.trim() || "{}");
    const fits = typeof value === "object" && value !== null && !Array.isArray(value);
    return fits ? (value as Record<string, unknown>) : 'Give a JSON object, as in {"output_format": "qcow2"}.';
  } catch (error) {
    return `This is no JSON: ${error instanceof Error ? error.message : error}`;
  }
}

/** Hands a job to the bus and waits a little for its record; returns its id. */
export async function submit(model: Model, draft: Draft): Promise<string> {
  const { bus } = model;
  const jobId = draft.jobId || newJobId();
  if (draft.jobId && (await model.readJob(jobId))) {
    throw new BusError("DUPLICATE_JOB", `A job has the id ${jobId} already.`, "Choose another one, or leave it out.");
  }
  const spec = {
    version: "1.0",
    job_id: jobId,
    operation: draft.operation,
    image: { path: draft.image },
    artifacts: { output_path: draft.outputDir },
    audit: { requested_by: bus.place.submitter },
    execution_policy: { priority: Number(draft.priority) },
    parameters: readParameters(draft.parameters),
    created_at: new Date().toISOString(),
  };
  const before = (await lastRefusal(bus))?.revision ?? 0;
  await bus.publish(bus.contract.command(bus.place.submitter, "submit", jobId), JSON.stringify(spec));
  await verdict(model, jobId, before);
  return jobId;
}

/** Waits until a scheduler has made the job's record or refused to, or for five seconds. */
async function verdict(model: Model, jobId: string, before: number): Promise<void> {
  const until = Date.now() + VERDICT_MS;
  while (!(await model.readJob(jobId)) && Date.now() < until) {
    const refusal = await lastRefusal(model.bus);
    if (refusal && refusal.revision > before) {
      throw new BusError("QUOTA_EXCEEDED", refusal.reason, adviceFor("QUOTA_EXCEEDED"));
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
}

/** What schedulers told this submitter last; nothing for one who may not read it. */
async function lastRefusal(bus: Bus): Promise<{ reason: string; revision: number } | null> {
  try {
    const found = await bus.last(bus.contract.locks, bus.contract.refusalOf(bus.place.submitter));
    const refusal = found && parsed<Refusal>(found.data);
    return found && refusal ? { reason: refusal.reason, revision: found.seq } : null;
  } catch (error) {
    if (error instanceof BusError && error.code === "PERMISSION_DENIED") return null;
    throw error;
  }
}

/** Asks for a job to be stopped, wherever it is. */
export async function cancel(bus: Bus, jobId: string, reason: string): Promise<void> {
  await bus.publish(
    bus.contract.command(bus.place.submitter, "cancel", jobId),
    JSON.stringify({ reason: reason.slice(0, 1024) }),
  );
}
