// The end of an attempt's log; more of it on request, up to a limit.
import { useEffect, useRef, useState } from "preact/hooks";
import { type LogTail, readLogTail } from "../artifacts";
import { BusError, asBusError } from "../bus";
import { bytes } from "../format";
import type { Model } from "../model";
import { Problem } from "./parts";

const FIRST_BYTES = 64 * 1024;
const MOST_BYTES = 4 * 1024 * 1024;
const LOOK_MS = 2000;

interface LogProps {
  model: Model;
  jobId: string;
  attempts: number;
  /** Whether more may come, so that it is looked at again and again. */
  live: boolean;
}

export function LogView({ model, jobId, attempts, live }: LogProps) {
  const [attempt, setAttempt] = useState(attempts);
  const [size, setSize] = useState(FIRST_BYTES);
  const [tail, setTail] = useState<LogTail | BusError | null | undefined>(undefined);
  const box = useRef<HTMLPreElement>(null);

  useEffect(() => {
    let wanted = true;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const look = () =>
      readLogTail(model.bus, jobId, attempt, size).then(
        (found) => {
          if (!wanted) return;
          setTail(found);
          if (live) timer = setTimeout(look, LOOK_MS);
        },
        (error: unknown) => wanted && setTail(asBusError(error)),
      );
    look();
    return () => {
      wanted = false;
      clearTimeout(timer);
    };
  }, [attempt, size]);
  useEffect(() => {
    box.current?.scrollTo(0, box.current.scrollHeight);
  }, [tail]);

  return (
    <section class="card log" aria-labelledby="log-title">
      <header>
        <h2 id="log-title">Log</h2>
        {attempts > 1 && (
          <label>
            Attempt{" "}
            <select value={attempt} onChange={(event) => setAttempt(Number(event.currentTarget.value))}>
              {Array.from({ length: attempts }, (_, index) => (
                <option key={index} value={index + 1}>
                  {index + 1}
                </option>
              ))}
            </select>
          </label>
        )}
      </header>
      <Tail tail={tail} box={box} onMore={() => setSize(Math.min(MOST_BYTES, size * 8))} limit={size >= MOST_BYTES} />
    </section>
  );
}

interface TailProps {
  tail: LogTail | BusError | null | undefined;
  box: { current: HTMLPreElement | null };
  onMore: () => void;
  limit: boolean;
}

function Tail({ tail, box, onMore, limit }: TailProps) {
  if (tail === undefined)
    return (
      <p class="muted" role="status">
        Reading…
      </p>
    );
  if (tail instanceof BusError) return <Problem error={tail} />;
  if (tail === null)
    return (
      <p class="muted">
        No log of this attempt is on the bus. Its worker stores what it logs a second later, unless the job says
        otherwise.
      </p>
    );
  return (
    <>
      {tail.shown < tail.size && (
        <p class="small">
          The last {bytes(tail.shown)} of {bytes(tail.size)}.{" "}
          {limit ? (
            <>More than this is not shown here; the worker's host has all of it.</>
          ) : (
            <button class="inline" onClick={onMore}>
              Show more
            </button>
          )}
        </p>
      )}
      <pre ref={box} tabIndex={0} aria-label="Log">
        {tail.text || "(empty)"}
      </pre>
    </>
  );
}
