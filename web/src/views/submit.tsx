// The form for a new job.
import { useState } from "preact/hooks";
import { BusError, asBusError } from "../bus";
import { type Draft, type Mistakes, mistakesIn, submit } from "../commands";
import { OPERATIONS } from "../contract";
import type { Model } from "../model";
import { Field, Modal, Problem } from "./parts";

const BLANK: Draft = { operation: "convert", image: "", outputDir: "", priority: "5", jobId: "", parameters: "" };

export function SubmitDialog({ model, onClose }: { model: Model; onClose: () => void }) {
  const [draft, setDraft] = useState(BLANK);
  const [mistakes, setMistakes] = useState<Mistakes>({});
  const [problem, setProblem] = useState<BusError | null>(null);
  const [busy, setBusy] = useState(false);
  const change = (field: keyof Draft) => (value: string) => setDraft({ ...draft, [field]: value });

  const send = async (event: Event) => {
    event.preventDefault();
    const trimmed = {
      ...draft,
      image: draft.image.trim(),
      outputDir: draft.outputDir.trim(),
      jobId: draft.jobId.trim(),
    };
    const found = mistakesIn(trimmed);
    setMistakes(found);
    if (Object.keys(found).length > 0) return;
    setBusy(true);
    setProblem(null);
    try {
      const jobId = await submit(model, trimmed);
      onClose();
      location.hash = `#/job/${jobId}`;
    } catch (error) {
      setProblem(asBusError(error));
      setBusy(false);
    }
  };

  return (
    <Modal title="Submit a job" onClose={onClose}>
      <form onSubmit={(event) => void send(event)} noValidate>
        {problem && <Problem error={problem} />}
        <Field
          label="Operation"
          value={draft.operation}
          onInput={change("operation")}
          mistake={mistakes.operation}
          list="operations"
        />
        <datalist id="operations">
          {Object.keys(OPERATIONS).map((name) => (
            <option key={name} value={name} />
          ))}
        </datalist>
        <p class="muted small hint">{OPERATIONS[draft.operation] ?? "Not one of the built-in operations."}</p>
        <Field
          label="Image"
          value={draft.image}
          onInput={change("image")}
          mistake={mistakes.image}
          placeholder="/images/disk.vmdk"
        />
        <Field
          label="Output directory"
          value={draft.outputDir}
          onInput={change("outputDir")}
          mistake={mistakes.outputDir}
          placeholder="/images/out"
        />
        <div class="pair">
          <Field
            label="Priority (1 is the most urgent)"
            value={draft.priority}
            onInput={change("priority")}
            mistake={mistakes.priority}
            inputMode="numeric"
          />
          <Field label="Job id (optional)" value={draft.jobId} onInput={change("jobId")} mistake={mistakes.jobId} />
        </div>
        <label class="field">
          <span>Parameters (JSON)</span>
          <textarea
            rows={4}
            value={draft.parameters}
            placeholder={'{"output_format": "qcow2"}'}
            spellcheck={false}
            onInput={(event) => change("parameters")(event.currentTarget.value)}
            aria-invalid={mistakes.parameters !== undefined}
            aria-describedby="parameters-mistake"
          />
          <span class="mistake" id="parameters-mistake">
            {mistakes.parameters}
          </span>
        </label>
        <footer>
          <button type="button" onClick={onClose}>
            Close
          </button>
          <button class="primary" disabled={busy}>
            {busy ? "Submitting…" : "Submit"}
          </button>
        </footer>
      </form>
    </Modal>
  );
}
