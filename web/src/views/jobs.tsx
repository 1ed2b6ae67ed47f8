// The list of jobs: filtered by state and words, the newest first.
import { useState } from "preact/hooks";
import { JOB_ID, type State, isLeased, isTerminal } from "../contract";
import { bytes, duration, fileName, took } from "../format";
import { type Job, type Snapshot, standing } from "../model";
import { Ago, Badge, Bar, Empty, useTitle } from "./parts";

const PAGE = 100;

const FILTERS: Record<string, (state: State) => boolean> = {
  All: () => true,
  Waiting: (state) => !isTerminal(state) && !isLeased(state),
  Running: isLeased,
  Completed: (state) => state === "COMPLETED",
  Failed: (state) => state === "FAILED",
  Cancelled: (state) => state === "CANCELLED",
};

function matches(job: Job, words: string): boolean {
  const { record } = job;
  const texts = [record.job_id, record.spec?.operation, record.spec?.image.path, record.worker_id, record.submitted_by];
  return texts.some((each) => each?.toLowerCase().includes(words));
}

export function JobList({ snapshot }: { snapshot: Snapshot }) {
  useTitle("Jobs");
  const [filter, setFilter] = useState("All");
  const [words, setWords] = useState("");
  const [limit, setLimit] = useState(PAGE);
  const all = [...snapshot.jobs.values()];
  const fits = FILTERS[filter] ?? (() => true);
  const found = all
    .filter((job) => fits(standing(job).state) && matches(job, words.trim().toLowerCase()))
    .sort((a, b) => Date.parse(b.record.created_at) - Date.parse(a.record.created_at) || b.revision - a.revision);

  return (
    <section aria-labelledby="jobs-title">
      <h1 id="jobs-title" class="hidden">
        Jobs
      </h1>
      <div class="tools">
        <div class="chips" role="group" aria-label="State">
          {Object.entries(FILTERS).map(([name, test]) => (
            <button key={name} aria-pressed={filter === name} onClick={() => setFilter(name)}>
              {name} <span class="number">{all.filter((job) => test(standing(job).state)).length}</span>
            </button>
          ))}
        </div>
        <input
          type="search"
          aria-label="Find jobs"
          placeholder="Id, operation, image, worker"
          value={words}
          onInput={(event) => setWords(event.currentTarget.value)}
        />
      </div>
      {found.length > 0 ? (
        <Table jobs={found.slice(0, limit)} />
      ) : (
        <Nothing words={words.trim()} any={all.length > 0} />
      )}
      {found.length > limit && (
        <p class="more">
          <button onClick={() => setLimit(limit + PAGE)}>
            Show {Math.min(PAGE, found.length - limit)} more of {found.length}
          </button>
        </p>
      )}
      {snapshot.total > all.length && (
        <p class="muted small">
          The {all.length} jobs that changed last, of {snapshot.total} on the bus. Type the whole id of an older one to
          open it.
        </p>
      )}
    </section>
  );
}

function Table({ jobs }: { jobs: Job[] }) {
  return (
    <table class="list jobs">
      <thead>
        <tr>
          <th>State</th>
          <th>Job</th>
          <th>Operation</th>
          <th>Image</th>
          <th>Progress</th>
          <th>What happens</th>
          <th>Worker</th>
          <th class="right">Changed</th>
        </tr>
      </thead>
      <tbody>
        {jobs.map((job) => (
          <Row key={job.record.job_id} job={job} />
        ))}
      </tbody>
    </table>
  );
}

function Row({ job }: { job: Job }) {
  const { record } = job;
  const { state, percent } = standing(job);
  const image = record.spec?.image.path ?? "";
  const told = job.event?.timestamp ?? "";
  return (
    <tr>
      <td>
        <Badge state={state} />
      </td>
      <td class="id">
        <a title={record.job_id} href={`#/job/${encodeURIComponent(record.job_id)}`}>
          {record.job_id}
        </a>
      </td>
      <td class="operation">{record.spec?.operation ?? "–"}</td>
      <td class="image" title={image}>
        {image ? fileName(image) : "–"}
      </td>
      <td class="progress">
        {percent > 0 || isLeased(state) ? (
          <Bar value={percent} state={state} label={`Progress of ${record.job_id}`} />
        ) : (
          ""
        )}
      </td>
      <td class="words">
        <Words job={job} />
      </td>
      <td class="worker">{record.worker_id ?? ""}</td>
      <td class="right changed">
        <Ago moment={told > record.updated_at ? told : record.updated_at} />
      </td>
    </tr>
  );
}

/** How much is done and left, or why a job waits or has failed. */
export function Words({ job }: { job: Job }) {
  const { record } = job;
  const { state, phase, event } = standing(job);
  const error = record.result?.error;
  if (state === "FAILED" && error)
    return (
      <span class="bad-text" title={error.message}>
        {error.code}: {error.message}
      </span>
    );
  if (state === "CANCELLED")
    return (
      <span class="muted" title={error?.message}>
        {error?.message ?? "cancelled"}
      </span>
    );
  if (isTerminal(state)) return <span class="number">took {took(record.result?.metrics?.execution_seconds ?? 0)}</span>;
  if (!isLeased(state)) return <span class="muted">{record.pending_reason ?? "waits for a worker"}</span>;
  const parts = [phase];
  if (event?.bytes_total) parts.push(`${bytes(event.bytes_done ?? 0)} of ${bytes(event.bytes_total)}`);
  if (event?.eta_seconds != null) parts.push(`${duration(event.eta_seconds)} left`);
  if (record.cancel_requested) parts.push("is being cancelled");
  return <span class="number">{parts.filter(Boolean).join(" · ")}</span>;
}

function Nothing({ words, any }: { words: string; any: boolean }) {
  if (!any && !words) return <Empty title="No jobs yet">They appear here as soon as somebody submits one.</Empty>;
  if (JOB_ID.test(words)) {
    return (
      <Empty title="No job in this list fits">
        It may be an older one: <a href={`#/job/${words}`}>open the job {words}</a>
      </Empty>
    );
  }
  return <Empty title="No job in this list fits">Choose another state or other words.</Empty>;
}
