// Small pieces that the views share.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import type { BusError } from "../bus";
import { type State, isTerminal } from "../contract";
import { ago, fullTime, percent as inPercent } from "../format";
import type { Model, Snapshot } from "../model";

/** The model's snapshot, drawn again whenever it changes. */
export function useSnapshot(model: Model): Snapshot {
  const [snapshot, setSnapshot] = useState(model.snapshot);
  useEffect(() => model.listen(() => setSnapshot(model.snapshot)), [model]);
  return snapshot;
}

/** What the browser's tab and history say. */
export function useTitle(words: string): void {
  useEffect(() => {
    document.title = `${words} – h2kbus`;
    return () => {
      document.title = "h2kbus";
    };
  }, [words]);
}

/** Words in which `this` is something to type. */
export function Prose({ words }: { words: string }) {
  return <>{words.split("`").map((part, index) => (index % 2 ? <code key={index}>{part}</code> : part))}</>;
}

export function Problem({ error }: { error: BusError }) {
  return (
    <div class="problem" role="alert">
      <strong>{error.message}</strong> <Prose words={error.advice} />
    </div>
  );
}

interface FieldProps {
  label: string;
  value: string;
  onInput: (value: string) => void;
  mistake?: string | undefined;
  type?: string;
  placeholder?: string;
  autocomplete?: "username" | "current-password" | "off";
  required?: boolean;
  list?: string;
  inputMode?: "numeric";
}

export function Field({ label, value, onInput, mistake, autocomplete = "off", ...more }: FieldProps) {
  const id = `field-${label.replaceAll(/\W+/g, "-").toLowerCase()}`;
  return (
    <label class="field">
      <span>{label}</span>
      <input
        {...(more as Record<string, unknown>)}
        value={value}
        autocomplete={autocomplete}
        spellcheck={false}
        onInput={(event) => onInput(event.currentTarget.value)}
        aria-invalid={mistake !== undefined}
        aria-describedby={mistake ? id : undefined}
      />
      {mistake && (
        <span class="mistake" id={id}>
          {mistake}
        </span>
      )}
    </label>
  );
}

const TONES: Partial<Record<State, string>> = {
  COMPLETED: "good",
  FAILED: "bad",
  CANCELLED: "off",
  RETRYING: "warn",
  RUNNING: "live",
  PROGRESSING: "live",
  ASSIGNED: "live",
};

export function Badge({ state }: { state: State }) {
  return <span class={`badge ${TONES[state] ?? "idle"}`}>{state === "PROGRESSING" ? "RUNNING" : state}</span>;
}

export function Bar({ value, label, state }: { value: number; label: string; state: State }) {
  const stopped = isTerminal(state) && state !== "COMPLETED";
  return (
    <span class={`bar ${stopped ? "stopped" : ""}`}>
      <progress max={100} value={value} aria-label={label} />
      <span class="number">{inPercent(value)}</span>
    </span>
  );
}

export function Ago({ moment }: { moment: string }) {
  return (
    <time dateTime={moment} title={fullTime(moment)}>
      {ago(moment)}
    </time>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p>
        <strong>{title}</strong>
      </p>
      {children && <p>{children}</p>}
    </div>
  );
}

/** A modal dialog that is open as long as it is drawn. */
export function Modal({
  title,
  onClose,
  children,
}: {
  title: string;
  onClose: () => void;
  children: ComponentChildren;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const before = document.activeElement;
    dialog.current?.showModal();
    return () => before instanceof HTMLElement && before.focus();
  }, []);
  return (
    <dialog ref={dialog} aria-label={title} onClose={onClose} onCancel={onClose}>
      <header>
        <h2>{title}</h2>
        <button type="button" class="quiet" aria-label="Close" onClick={onClose}>
          ✕
        </button>
      </header>
      {children}
    </dialog>
  );
}
