// The workers that live: state, slots, what they do and what they have proven that they can do.
import { BusError } from "../bus";
import type { LiveWorker } from "../model";
import { Ago, Empty, Problem, useTitle } from "./parts";

export function FleetView({ workers }: { workers: LiveWorker[] | BusError | null }) {
  useTitle("Fleet");
  return (
    <section aria-labelledby="fleet-title">
      <h1 id="fleet-title">Fleet</h1>
      <Workers workers={workers} />
    </section>
  );
}

function Workers({ workers }: { workers: LiveWorker[] | BusError | null }) {
  if (workers === null)
    return (
      <p class="muted" role="status">
        Reading…
      </p>
    );
  if (workers instanceof BusError) return <Problem error={workers} />;
  if (workers.length === 0)
    return (
      <Empty title="No workers">
        Start one with <code>h2kbus worker</code> on a host that has disks.
      </Empty>
    );
  return (
    <table class="list fleet">
      <thead>
        <tr>
          <th>State</th>
          <th>Worker</th>
          <th>Host</th>
          <th>Pool</th>
          <th>Slots in use</th>
          <th>Jobs</th>
          <th>Capabilities</th>
          <th>Version</th>
          <th class="right">Heard</th>
        </tr>
      </thead>
      <tbody>
        {workers.map((each) => (
          <Row key={each.worker_id} worker={each} />
        ))}
      </tbody>
    </table>
  );
}

function Row({ worker }: { worker: LiveWorker }) {
  const slots = worker.max_concurrent_jobs ?? 1;
  const used = slots - (worker.free_slots ?? 0);
  const [state, tone] = stateOf(worker, used);
  const proven = Object.entries(worker.capabilities ?? {})
    .filter(([, has]) => has)
    .map(([token]) => token)
    .sort();
  return (
    <tr>
      <td>
        <span class={`badge ${tone}`}>{state}</span>
      </td>
      <td class="id">{worker.worker_id}</td>
      <td data-label="Host">{worker.hostname}</td>
      <td data-label="Pool">{worker.pool ?? "default"}</td>
      <td>
        <span class="bar slots">
          <meter max={slots} value={used} aria-label={`Slots in use on ${worker.worker_id}`} />
          <span class="number">
            {used} / {slots}
          </span>
        </span>
      </td>
      <td class="id busy">
        {(worker.running_jobs ?? []).map((job) => (
          <a key={job} href={`#/job/${encodeURIComponent(job)}`}>
            {job}{" "}
          </a>
        ))}
      </td>
      <td class="tokens">
        {proven.map((token) => (
          <span key={token} class="token" title={worker.evidence?.[token]}>
            {token}
          </span>
        ))}
      </td>
      <td class="number" data-label="Version">
        {worker.version}
      </td>
      <td class="right changed">
        <Ago moment={worker.heard} />
      </td>
    </tr>
  );
}

function stateOf(worker: LiveWorker, used: number): [string, string] {
  if (worker.draining) return ["DRAINING", "warn"];
  if (worker.cordoned) return ["CORDONED", "warn"];
  return used > 0 ? ["BUSY", "live"] : ["IDLE", "idle"];
}
