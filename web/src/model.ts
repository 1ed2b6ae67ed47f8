// What the page knows of the fleet: read from the bus, kept up to date, and told to the views when it changes.
import { type Bus, BusError, asBusError, parsed } from "./bus";
import { type JobRecord, type Lane, type ProgressEvent, SEQ_STRIDE, type Worker, isTerminal } from "./contract";

const CHANGES_MS = 2000;
const FLEET_MS = 4000;
const HURRY_MS = 150;
const MAX_JOBS = 2000;
/** So many of the newest writes are read at the start; a job is written several times. */
const WINDOW = 10_000;

export interface Job {
  record: JobRecord;
  revision: number;
  event?: ProgressEvent;
}

export interface LiveWorker extends Worker {
  heard: string;
}

export interface LaneLoad extends Lane {
  waiting: number;
  running: number;
  parked: number;
  oldest: string | null;
}

export interface Snapshot {
  jobs: Map<string, Job>;
  /** Jobs on the bus, also those that were written too long ago to be read at the start. */
  total: number;
  workers: LiveWorker[] | BusError | null;
  lanes: LaneLoad[] | BusError | null;
  problem: BusError | null;
  mayCommand: boolean;
}

interface ConsumerPage {
  total: number;
  consumers: { name: string; num_pending: number; num_ack_pending: number; num_waiting: number }[] | null;
}

export class Model {
  snapshot: Snapshot = { jobs: new Map(), total: 0, workers: null, lanes: null, problem: null, mayCommand: true };
  private readonly listeners = new Set<() => void>();
  private readonly events = new Set<(event: ProgressEvent) => void>();
  private readonly timers = new Set<number>();
  private after = 0;
  private hurrying = false;
  private painting = false;

  constructor(readonly bus: Bus) {}

  /** Begins to follow the bus; `stop` ends it. */
  start(): void {
    this.bus.subscribe(this.bus.contract.progressOf("*"), (message) => {
      const event = parsed<ProgressEvent>(message.data);
      if (event) this.take(event);
    });
    void this.bus.mayCommand().then((mayCommand) => this.set({ mayCommand }));
    this.every(CHANGES_MS, () => this.readChanges());
    this.every(FLEET_MS, () => this.readFleet());
  }

  /** After a reconnection: the bus may be another one by now, with revisions that begin anew. */
  resync(): void {
    this.after = 0;
    this.set({ jobs: new Map() });
    this.hurry();
  }

  stop(): void {
    this.timers.forEach(clearTimeout);
    this.timers.clear();
    this.listeners.clear();
  }

  listen(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  onEvent(listener: (event: ProgressEvent) => void): () => void {
    this.events.add(listener);
    return () => this.events.delete(listener);
  }

  /** Reads one job's record anew, for those that are not in the list. */
  async readJob(jobId: string): Promise<Job | null> {
    const { contract } = this.bus;
    const found = await this.bus.last(contract.records, contract.recordOf(jobId));
    const record = found && parsed<JobRecord>(found.data);
    if (!found || !record) return null;
    this.keep(record, found.seq);
    this.changed();
    return this.snapshot.jobs.get(jobId) ?? null;
  }

  /** Reads what has changed soon, not only when it is time. */
  hurry(): void {
    if (this.hurrying) return;
    this.hurrying = true;
    const timer = window.setTimeout(() => {
      this.timers.delete(timer);
      this.hurrying = false;
      void this.guarded(() => this.readChanges());
    }, HURRY_MS);
    this.timers.add(timer);
  }

  /** A page that nobody looks at asks nothing. */
  private every(pause: number, work: () => Promise<void>): void {
    const round = async () => {
      if (!document.hidden) await this.guarded(work);
      const timer = window.setTimeout(() => {
        this.timers.delete(timer);
        void round();
      }, pause);
      this.timers.add(timer);
    };
    void round();
  }

  private async guarded(work: () => Promise<void>): Promise<void> {
    try {
      await work();
      if (this.snapshot.problem) this.set({ problem: null });
    } catch (error) {
      this.set({ problem: asBusError(error) });
    }
  }

  private take(event: ProgressEvent): void {
    this.events.forEach((listener) => listener(event));
    const job = this.snapshot.jobs.get(event.job_id);
    if (job && event.seq > (job.event?.seq ?? -1)) job.event = event;
    if (!job || isTerminal(event.state) || event.state !== job.record.state) this.hurry();
    this.changed();
  }

  private async readChanges(): Promise<void> {
    const { contract } = this.bus;
    if (this.after === 0) await this.findStart();
    for await (const found of this.bus.read(contract.records, {
      next_by_subj: contract.recordOf("*"),
      seq: this.after + 1,
    })) {
      this.after = found.seq;
      const record = parsed<JobRecord>(found.data);
      if (record?.job_id) this.keep(record, found.seq);
    }
    this.forget();
    this.changed();
  }

  private async findStart(): Promise<void> {
    const info = await this.bus.api<{ state: { messages: number; last_seq: number } }>(
      `STREAM.INFO.${this.bus.contract.records}`,
    );
    const { messages, last_seq } = info.state;
    this.after = messages > MAX_JOBS ? Math.max(0, last_seq - WINDOW) : 0;
    this.snapshot.total = messages;
  }

  private keep(record: JobRecord, revision: number): void {
    const known = this.snapshot.jobs.get(record.job_id);
    if (known && known.revision >= revision) return;
    const event = known?.event;
    this.snapshot.jobs.set(record.job_id, { record, revision, ...(event && { event }) });
  }

  private forget(): void {
    const { jobs } = this.snapshot;
    this.snapshot.total = Math.max(this.snapshot.total, jobs.size);
    if (jobs.size > MAX_JOBS) {
      const oldest = [...jobs.values()].sort((a, b) => a.revision - b.revision).slice(0, jobs.size - MAX_JOBS);
      for (const each of oldest) jobs.delete(each.record.job_id);
    }
  }

  private async readFleet(): Promise<void> {
    const [workers, lanes] = await Promise.all([settled(this.readWorkers()), settled(this.readLanes())]);
    this.set({ workers, lanes });
  }

  private async readWorkers(): Promise<LiveWorker[]> {
    const { contract } = this.bus;
    const found: LiveWorker[] = [];
    for await (const each of this.bus.read(contract.workers, { next_by_subj: contract.allWorkers(), seq: 1 })) {
      const worker = parsed<Worker>(each.data);
      if (worker) found.push({ ...worker, heard: each.time });
    }
    return found.sort((a, b) => a.worker_id.localeCompare(b.worker_id));
  }

  private async readLanes(): Promise<LaneLoad[]> {
    const { contract } = this.bus;
    const lanes: Lane[] = [];
    for await (const each of this.bus.read(contract.lanes, { next_by_subj: contract.allLanes(), seq: 1 })) {
      const lane = parsed<Lane>(each.data);
      if (lane) lanes.push(lane);
    }
    const states = await this.readConsumers();
    const loads = lanes.map(async (lane) => {
      const state = states.get(lane.consumer);
      const found =
        state && state.num_pending + state.num_ack_pending > 0
          ? await this.bus.batch(contract.jobs, { next_by_subj: contract.lane(lane), seq: 1, batch: 1 })
          : null;
      return {
        ...lane,
        waiting: state?.num_pending ?? 0,
        running: state?.num_ack_pending ?? 0,
        parked: state?.num_waiting ?? 0,
        oldest: found?.messages[0]?.time ?? null,
      };
    });
    const read = await Promise.all(loads);
    return read.sort((a, b) => a.priority - b.priority || a.pool.localeCompare(b.pool) || a.lane.localeCompare(b.lane));
  }

  private async readConsumers(): Promise<Map<string, NonNullable<ConsumerPage["consumers"]>[number]>> {
    const found = new Map<string, NonNullable<ConsumerPage["consumers"]>[number]>();
    for (;;) {
      const page = await this.bus.api<ConsumerPage>(`CONSUMER.LIST.${this.bus.contract.jobs}`, { offset: found.size });
      for (const each of page.consumers ?? []) found.set(each.name, each);
      if (!page.consumers?.length || found.size >= page.total) return found;
    }
  }

  private set(change: Partial<Snapshot>): void {
    Object.assign(this.snapshot, change);
    this.changed();
  }

  /** However much happens, the views are drawn once for each frame. */
  private changed(): void {
    if (this.painting) return;
    this.painting = true;
    const paint = () => {
      this.painting = false;
      this.snapshot = { ...this.snapshot };
      this.listeners.forEach((listener) => listener());
    };
    if (document.hidden) setTimeout(paint, HURRY_MS);
    else requestAnimationFrame(paint);
  }
}

/** What is read, or why not: a user who may not read one thing still sees the others. */
async function settled<T>(reading: Promise<T>): Promise<T | BusError> {
  try {
    return await reading;
  } catch (error) {
    if (error instanceof BusError && error.code === "PERMISSION_DENIED") return error;
    throw error;
  }
}

/** Where a job stands now: its newest event, unless its record is newer. */
export function standing(job: Job): {
  state: JobRecord["state"];
  percent: number;
  phase: string;
  event: ProgressEvent | null;
} {
  const { record, event, revision } = job;
  if (event && event.seq >= revision * SEQ_STRIDE && !isTerminal(record.state)) {
    return { state: event.state, percent: event.progress_percent, phase: event.phase, event };
  }
  const done = record.state === "COMPLETED" ? 100 : (record.progress?.progress_percent ?? 0);
  const percent = event && event.attempt === record.attempt ? Math.max(done, event.progress_percent) : done;
  const live = event && event.attempt === record.attempt && !isTerminal(record.state) ? event : null;
  return { state: record.state, percent, phase: live?.phase ?? record.progress?.phase ?? "", event: live };
}
