// One job: where it stands, what came of it, what happened, and its log.
import { useEffect, useState } from "preact/hooks";
import { BusError, asBusError, parsed } from "../bus";
import {
  type JobError,
  type JobRecord,
  JOB_ID,
  type ProgressEvent,
  adviceFor,
  isLeased,
  isTerminal,
} from "../contract";
import { bytes, clockTime, fullTime, percent as inPercent, took } from "../format";
import { type Job, type Model, type Snapshot, standing } from "../model";
import { CancelDialog } from "./cancel";
import { Words } from "./jobs";
import { LogView } from "./log";
import { Badge, Bar, Empty, Problem, Prose, useTitle } from "./parts";

const MAX_EVENTS = 1000;

export function JobView({ model, snapshot, jobId }: { model: Model; snapshot: Snapshot; jobId: string }) {
  const [missing, setMissing] = useState<BusError | true | null>(null);
  const job = snapshot.jobs.get(jobId);

  useEffect(() => {
    if (!JOB_ID.test(jobId)) return setMissing(true);
    model.readJob(jobId).then(
      (found) => {
        if (!found) setMissing(true);
      },
      (error: unknown) => setMissing(asBusError(error)),
    );
  }, [jobId]);

  if (job) return <Known model={model} job={job} mayCommand={snapshot.mayCommand} />;
  if (missing instanceof BusError) return <Problem error={missing} />;
  if (!missing)
    return (
      <p class="muted" role="status">
        Reading…
      </p>
    );
  return (
    <Empty title={`There is no job ${jobId.slice(0, 128)}`}>
      Records of finished jobs expire after 30 days; a job that was just submitted appears once a scheduler has seen it.{" "}
      <a href="#/jobs">All jobs</a>
    </Empty>
  );
}

function Known({ model, job, mayCommand }: { model: Model; job: Job; mayCommand: boolean }) {
  const [cancelling, setCancelling] = useState(false);
  const { record } = job;
  const { state, percent } = standing(job);
  useTitle(`${record.job_id} ${state}`);
  return (
    <article aria-labelledby="job-title">
      <header class="job-head">
        <h1 id="job-title" class="id">
          {record.job_id}
        </h1>
        <Badge state={state} />
        {mayCommand && !isTerminal(state) && (
          <button class="danger" disabled={record.cancel_requested} onClick={() => setCancelling(true)}>
            {record.cancel_requested ? "Cancelling…" : "Cancel"}
          </button>
        )}
      </header>
      <p class="hidden" role="status">{`${state}, ${Math.floor(percent / 10) * 10} %`}</p>
      <div class="card now">
        <Bar value={percent} state={state} label="Progress" />
        {!record.result?.error && (
          <p>
            <Words job={job} />
          </p>
        )}
      </div>
      {record.result?.error && <Failure error={record.result.error} />}
      <div class="columns">
        <Facts record={record} />
        <Outcome record={record} />
      </div>
      <AuditTrail record={record} />
      <History model={model} jobId={record.job_id} />
      {(record.attempt ?? 0) > 0 && (
        <LogView
          key={`${record.attempt} ${isTerminal(state)}`}
          model={model}
          jobId={record.job_id}
          attempts={record.attempt ?? 1}
          live={!isTerminal(state)}
        />
      )}
      <details class="card">
        <summary>Record as JSON</summary>
        <pre tabIndex={0}>{JSON.stringify(record, null, 2)}</pre>
      </details>
      {cancelling && <CancelDialog model={model} jobId={record.job_id} onClose={() => setCancelling(false)} />}
    </article>
  );
}

function Failure({ error }: { error: JobError }) {
  return (
    <div class={`problem ${error.code === "CANCELLED" ? "mild" : ""}`} role="note" aria-label="Error">
      <strong>{error.code}</strong> {error.phase && <span class="muted">in {error.phase}</span>}
      <p>{error.message}</p>
      {adviceFor(error.code) && (
        <p class="advice">
          <Prose words={adviceFor(error.code)} />
        </p>
      )}
    </div>
  );
}

function Facts({ record }: { record: JobRecord }) {
  const { spec } = record;
  const facts: [string, string | number | null | undefined][] = [
    ["Operation", spec?.operation],
    ["Image", spec?.image.path],
    ["Output directory", spec?.artifacts.output_path],
    ["Submitted by", record.submitted_by],
    ["Submitted", fullTime(record.created_at)],
    ["Lane", `${record.pool ?? "default"} / ${record.lane ?? "any"}`],
    ["Priority", record.priority],
    ["Attempt", record.attempt],
    ["Worker", record.worker_id],
    ["Ticket", spec?.audit.ticket],
  ];
  return (
    <section class="card">
      <h2>Job</h2>
      <Definitions facts={facts} parent={record.parent} />
    </section>
  );
}

function Definitions({
  facts,
  parent,
}: {
  facts: [string, string | number | null | undefined][];
  parent?: string | null | undefined;
}) {
  return (
    <dl>
      {facts
        .filter(([, value]) => value != null && value !== "")
        .map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      {parent && (
        <div>
          <dt>Retry of</dt>
          <dd>
            <a href={`#/job/${encodeURIComponent(parent)}`}>{parent}</a>
          </dd>
        </div>
      )}
    </dl>
  );
}

function Outcome({ record }: { record: JobRecord }) {
  const { result } = record;
  if (!result) {
    return (
      <section class="card">
        <h2>Result</h2>
        <p class="muted">{isLeased(record.state) ? "The job is running." : "The job has not begun."}</p>
      </section>
    );
  }
  const { outputs = {}, metrics = {}, warnings = [], summary = {} } = result;
  const facts: [string, string | number | null | undefined][] = [
    ["Ended", fullTime(result.completed_at)],
    ["Took", metrics.execution_seconds === undefined ? null : took(metrics.execution_seconds)],
    ["Image", outputs["fixed_image"] as string],
    ["Report", outputs["report"] as string],
    ["Log", outputs["logs"] as string],
    ["Read", metrics.disk_read_bytes ? bytes(metrics.disk_read_bytes) : null],
    ["Written", metrics.disk_write_bytes ? bytes(metrics.disk_write_bytes) : null],
  ];
  return (
    <section class="card">
      <h2>Result</h2>
      <Definitions facts={facts} />
      {warnings.length > 0 && (
        <>
          <h3>Warnings</h3>
          <ul>
            {warnings.map((each) => (
              <li key={each}>{each}</li>
            ))}
          </ul>
        </>
      )}
      {Object.keys(summary).length > 0 && (
        <details>
          <summary>Summary</summary>
          <pre tabIndex={0}>{JSON.stringify(summary, null, 2)}</pre>
        </details>
      )}
    </section>
  );
}

function AuditTrail({ record }: { record: JobRecord }) {
  return (
    <section class="card" aria-labelledby="audit-title">
      <h2 id="audit-title">Audit trail</h2>
      <table class="list audit">
        <thead>
          <tr>
            <th>Time</th>
            <th>State</th>
            <th>By</th>
            <th>Reason</th>
          </tr>
        </thead>
        <tbody>
          {(record.transitions ?? []).map((each, index) => (
            <tr key={index}>
              <td class="number" title={fullTime(each.at)}>
                {clockTime(each.at)}
              </td>
              <td class="state">{each.to}</td>
              <td class="id">{each.by}</td>
              <td>{each.reason}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

/** What the stream has of a job's events, then those that come; each once and in order, by `seq`. */
function useEvents(model: Model, jobId: string): [ProgressEvent[], BusError | null] {
  const [events, setEvents] = useState<ProgressEvent[]>([]);
  const [problem, setProblem] = useState<BusError | null>(null);
  useEffect(() => {
    const add = (found: ProgressEvent[]) =>
      setEvents((known) => {
        const bySeq = new Map([...known, ...found].map((each) => [each.seq, each]));
        return [...bySeq.values()].sort((a, b) => a.seq - b.seq).slice(-MAX_EVENTS);
      });
    const stop = model.onEvent((event) => {
      if (event.job_id === jobId) add([event]);
    });
    const { contract } = model.bus;
    const past = async () => {
      const found: ProgressEvent[] = [];
      for await (const each of model.bus.read(contract.progress, {
        next_by_subj: contract.progressOf(jobId),
        seq: 1,
      })) {
        const event = parsed<ProgressEvent>(each.data);
        if (event) found.push(event);
      }
      add(found);
    };
    past().catch((error: unknown) => setProblem(asBusError(error)));
    return stop;
  }, [jobId]);
  return [events, problem];
}

function History({ model, jobId }: { model: Model; jobId: string }) {
  const [events, problem] = useEvents(model, jobId);
  return (
    <section class="card" aria-labelledby="history-title">
      <h2 id="history-title">Progress</h2>
      {problem && <Problem error={problem} />}
      {events.length === 0 ? (
        <p class="muted">No events are kept of this job.</p>
      ) : (
        <div class="scroll" tabIndex={0} role="region" aria-labelledby="history-title">
          <table class="list history">
            <thead>
              <tr>
                <th>Time</th>
                <th>Phase</th>
                <th class="right">Done</th>
                <th class="right">Bytes</th>
                <th>Message</th>
              </tr>
            </thead>
            <tbody>
              {[...events].reverse().map((each) => (
                <tr key={each.seq}>
                  <td class="number">
                    <time dateTime={each.timestamp} title={fullTime(each.timestamp)}>
                      {clockTime(each.timestamp)}
                    </time>
                  </td>
                  <td>{each.phase}</td>
                  <td class="right number">{inPercent(each.progress_percent)}</td>
                  <td class="right number">
                    {each.bytes_total ? `${bytes(each.bytes_done ?? 0)} of ${bytes(each.bytes_total)}` : ""}
                  </td>
                  <td>{each.message}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </section>
  );
}
