// The lanes and how full they are: jobs that wait and run, and workers that wait for the next one.
import { BusError } from "../bus";
import { duration } from "../format";
import type { LaneLoad } from "../model";
import { Empty, Problem, useTitle } from "./parts";

export function LanesView({ lanes }: { lanes: LaneLoad[] | BusError | null }) {
  useTitle("Lanes");
  return (
    <section aria-labelledby="lanes-title">
      <h1 id="lanes-title">Lanes</h1>
      <Loads lanes={lanes} />
    </section>
  );
}

function Loads({ lanes }: { lanes: LaneLoad[] | BusError | null }) {
  if (lanes === null)
    return (
      <p class="muted" role="status">
        Reading…
      </p>
    );
  if (lanes instanceof BusError) return <Problem error={lanes} />;
  if (lanes.length === 0) return <Empty title="No lanes yet">The first job of a kind makes one.</Empty>;
  return (
    <table class="list lanes">
      <thead>
        <tr>
          <th class="right">Priority</th>
          <th>Pool</th>
          <th>Needs</th>
          <th class="right">Waiting</th>
          <th class="right">Running</th>
          <th class="right">Idle pulls</th>
          <th class="right">Oldest</th>
        </tr>
      </thead>
      <tbody>
        {lanes.map((lane) => (
          <Row key={lane.consumer} lane={lane} />
        ))}
      </tbody>
    </table>
  );
}

function Row({ lane }: { lane: LaneLoad }) {
  const stuck = lane.waiting > 0 && lane.parked === 0 && lane.running === 0;
  return (
    <tr>
      <td class="right number">{lane.priority}</td>
      <td>{lane.pool}</td>
      <td class="tokens">
        {lane.lane === "any" ? (
          <span class="muted">nothing</span>
        ) : (
          lane.lane.split("+").map((token) => (
            <span key={token} class="token">
              {token}
            </span>
          ))
        )}
      </td>
      <td class={`right number ${stuck ? "bad-text" : ""}`} title={stuck ? "No worker asks for these" : undefined}>
        {lane.waiting}
      </td>
      <td class="right number">{lane.running}</td>
      <td class="right number">{lane.parked}</td>
      <td class="right number">{lane.oldest ? duration((Date.now() - Date.parse(lane.oldest)) / 1000) : "–"}</td>
    </tr>
  );
}
