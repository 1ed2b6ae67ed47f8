// The frame around the views: navigation, the state of the connection, and the dialogs.
import { useEffect, useState } from "preact/hooks";
import type { Model } from "../model";
import { FleetView } from "./fleet";
import { JobView } from "./job";
import { JobList } from "./jobs";
import { LanesView } from "./lanes";
import { Problem, useSnapshot } from "./parts";
import { SubmitDialog } from "./submit";

const VIEWS = [
  ["jobs", "Jobs"],
  ["fleet", "Fleet"],
  ["lanes", "Lanes"],
] as const;

function useRoute(): [string, string] {
  const read = () => location.hash.replace(/^#\/?/, "");
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const follow = () => setRoute(read());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  const [view = "", detail = ""] = route.split("/");
  return [view || "jobs", decoded(detail)];
}

function decoded(words: string): string {
  try {
    return decodeURIComponent(words);
  } catch {
    return words;
  }
}

export function Desk({ model, connected, onSignOut }: { model: Model; connected: boolean; onSignOut: () => void }) {
  const snapshot = useSnapshot(model);
  const [view, detail] = useRoute();
  const [submitting, setSubmitting] = useState(false);
  const { mayCommand, problem } = snapshot;

  return (
    <>
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          document.getElementById("main")?.focus();
        }}
      >
        Skip to content
      </a>
      <header class="top">
        <a class="brand" href="#/jobs">
          <img src="icon.svg" alt="" width="22" height="22" /> h2kbus
        </a>
        <nav aria-label="Views">
          {VIEWS.map(([name, label]) => (
            <a
              key={name}
              href={`#/${name}`}
              aria-current={view === name || (name === "jobs" && view === "job") ? "page" : undefined}
            >
              {label}
            </a>
          ))}
        </nav>
        <span class={`link ${connected ? "up" : "down"}`} role="status" title={model.bus.place.websocket}>
          {connected ? "Connected" : "Reconnecting…"}
        </span>
        {mayCommand ? (
          <button class="primary" onClick={() => setSubmitting(true)}>
            Submit a job
          </button>
        ) : (
          <span class="badge idle" title="This user may read, and give no commands">
            READ ONLY
          </span>
        )}
        <button class="quiet" onClick={onSignOut}>
          Sign out
        </button>
      </header>
      <main id="main" tabIndex={-1}>
        {problem && connected && <Problem error={problem} />}
        {view === "job" ? (
          <JobView key={detail} model={model} snapshot={snapshot} jobId={detail} />
        ) : view === "fleet" ? (
          <FleetView workers={snapshot.workers} />
        ) : view === "lanes" ? (
          <LanesView lanes={snapshot.lanes} />
        ) : (
          <JobList snapshot={snapshot} />
        )}
      </main>
      {submitting && <SubmitDialog model={model} onClose={() => setSubmitting(false)} />}
    </>
  );
}
