// Cancelling a job, once it is confirmed.
import { useState } from "preact/hooks";
import { BusError, asBusError } from "../bus";
import { cancel } from "../commands";
import type { Model } from "../model";
import { Field, Modal, Problem } from "./parts";

export function CancelDialog({ model, jobId, onClose }: { model: Model; jobId: string; onClose: () => void }) {
  const [reason, setReason] = useState("");
  const [problem, setProblem] = useState<BusError | null>(null);
  const [busy, setBusy] = useState(false);

  const send = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await cancel(model.bus, jobId, reason);
      model.hurry();
      onClose();
    } catch (error) {
      setProblem(asBusError(error));
      setBusy(false);
    }
  };

  return (
    <Modal title="Cancel this job?" onClose={onClose}>
      <form onSubmit={(event) => void send(event)}>
        {problem && <Problem error={problem} />}
        <p>
          Its worker stops <code>{jobId}</code> and throws away what is not finished. This cannot be taken back.
        </p>
        <Field label="Reason (optional)" value={reason} onInput={setReason} />
        <footer>
          <button type="button" onClick={onClose}>
            Keep it running
          </button>
          <button class="danger" disabled={busy}>
            {busy ? "Cancelling…" : "Cancel the job"}
          </button>
        </footer>
      </form>
    </Modal>
  );
}
