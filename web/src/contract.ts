// The wire contract as the page needs it: names, subjects, and the shapes of messages. See docs/reference.
import facts from "./contract.json";

export type State =
  | "CREATED"
  | "VALIDATED"
  | "QUEUED"
  | "ASSIGNED"
  | "RUNNING"
  | "PROGRESSING"
  | "RETRYING"
  | "COMPLETED"
  | "FAILED"
  | "CANCELLED";

export const OPERATIONS: Record<string, string> = facts.operations;
export const SEQ_STRIDE = facts.seqStride;
const ADVICE: Record<string, string> = facts.advice;

export const isTerminal = (state: State) => facts.terminal.includes(state);
export const isLeased = (state: State) => facts.leased.includes(state);
export const adviceFor = (code: string) => ADVICE[code] ?? "";

export interface JobError {
  code: string;
  message: string;
  phase?: string | null;
  details?: Record<string, unknown>;
  stack_trace?: string | null;
}

export interface JobResult {
  status: State;
  completed_at: string;
  worker_id?: string | null;
  outputs?: Record<string, string | string[] | null>;
  metrics?: { execution_seconds?: number; disk_read_bytes?: number; disk_write_bytes?: number };
  error?: JobError | null;
  warnings?: string[];
  summary?: Record<string, unknown>;
}

export interface JobSpec {
  operation: string;
  image: { path: string; format?: string | null };
  artifacts: { output_path: string };
  audit: { requested_by: string; ticket?: string | null };
  [field: string]: unknown;
}

export interface JobRecord {
  job_id: string;
  state: State;
  submitted_by: string;
  created_at: string;
  updated_at: string;
  spec?: JobSpec | null;
  pool?: string;
  lane?: string;
  priority?: number;
  attempt?: number;
  worker_id?: string | null;
  transitions?: { from: State | null; to: State; at: string; by: string; reason?: string | null }[];
  progress?: { phase: string; progress_percent: number; message?: string } | null;
  result?: JobResult | null;
  errors?: JobError[];
  pending_reason?: string | null;
  cancel_requested?: boolean;
  parent?: string | null;
}

export interface ProgressEvent {
  job_id: string;
  seq: number;
  timestamp: string;
  state: State;
  phase: string;
  progress_percent: number;
  message?: string;
  attempt?: number;
  worker_id?: string | null;
  bytes_done?: number | null;
  bytes_total?: number | null;
  eta_seconds?: number | null;
}

export interface Worker {
  worker_id: string;
  hostname: string;
  capabilities?: Record<string, boolean>;
  evidence?: Record<string, string>;
  pool?: string;
  version?: string;
  max_concurrent_jobs?: number;
  free_slots?: number;
  running_jobs?: string[];
  draining?: boolean;
  cordoned?: boolean;
}

/** Why commands of a submitter were refused last. */
export interface Refusal {
  reason: string;
  at: string;
}

export interface Lane {
  pool: string;
  lane: string;
  priority: number;
  consumer: string;
}

export const JOB_ID = /^[A-Za-z0-9_-]{1,128}$/;

export class Contract {
  readonly jobs: string;
  readonly progress: string;
  readonly records: string;
  readonly workers: string;
  readonly lanes: string;
  readonly locks: string;
  readonly artifacts: string;
  private readonly fleet: string;

  constructor(readonly root: string) {
    this.fleet = root.replace(/\.v1$/, "").replaceAll(".", "_");
    const upper = this.fleet.toUpperCase();
    this.jobs = `${upper}_JOBS`;
    this.progress = `${upper}_PROGRESS`;
    this.records = `KV_${this.fleet}_jobs`;
    this.workers = `KV_${this.fleet}_workers`;
    this.lanes = `KV_${this.fleet}_lanes`;
    this.locks = `KV_${this.fleet}_locks`;
    this.artifacts = `OBJ_${this.fleet}_artifacts`;
  }

  command = (submitter: string, verb: string, jobId: string) => `${this.root}.commands.${submitter}.${verb}.${jobId}`;
  progressOf = (jobId: string) => `${this.root}.progress.${jobId}`;
  recordOf = (jobId: string) => `$KV.${this.fleet}_jobs.${jobId}`;
  refusalOf = (submitter: string) => `$KV.${this.fleet}_locks.refused.${submitter}`;
  allWorkers = () => `$KV.${this.fleet}_workers.*`;
  allLanes = () => `$KV.${this.fleet}_lanes.>`;
  lane = (lane: Lane) => `${this.root}.jobs.${lane.pool}.${lane.lane}.${lane.priority}.*`;
  objectMeta = (name: string) => `$O.${this.fleet}_artifacts.M.${base64url(name)}`;
  objectChunks = (nuid: string) => `$O.${this.fleet}_artifacts.C.${nuid}`;
}

/** With padding, as object stores name their objects. */
function base64url(text: string): string {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_");
}

const DIGITS = "0123456789abcdefghjkmnpqrstvwxyz";

/** Milliseconds since 1970 in ten digits, then ten at random, as h2kbus itself makes them. */
export function newJobId(): string {
  let time = "";
  for (let rest = Date.now(), place = 0; place < 10; place += 1) {
    time = DIGITS.charAt(rest % 32) + time;
    rest = Math.floor(rest / 32);
  }
  const random = crypto.getRandomValues(new Uint8Array(10));
  return time + [...random].map((byte) => DIGITS.charAt(byte % 32)).join("");
}
