// A job's log, from the fleet's object store. Only its end is read, however long it is.
import { type Bus, parsed } from "./bus";

const CHUNKS_PER_READ = 16;
/** Of a log that is still being written nobody has counted the chunks: so many of the last are read. */
const CHUNKS_OF_OPEN = 64;

interface ObjectInfo {
  nuid: string;
  size: number;
  chunks: number;
  deleted?: boolean;
  metadata?: Record<string, string>;
}

export interface LogTail {
  text: string;
  /** Bytes of the whole log, and of the part that is shown. */
  size: number;
  shown: number;
  /** Whether more is to come, or was when its worker was lost. */
  open: boolean;
}

/** The last bytes of an attempt's log, or null when there is none. */
export async function readLogTail(bus: Bus, jobId: string, attempt: number, bytes: number): Promise<LogTail | null> {
  const { contract } = bus;
  const meta = await bus.last(contract.artifacts, contract.objectMeta(`${jobId}/${attempt}/log`));
  const info = meta && parsed<ObjectInfo>(meta.data);
  if (!info || info.deleted || !/^[A-Za-z0-9]+$/.test(info.nuid)) return null;
  const open = info.metadata?.h2kbus === "open";
  if (info.size === 0 && !open) return { text: "", size: 0, shown: 0, open };
  const parts = await readLastChunks(bus, contract.objectChunks(info.nuid), info, bytes);
  const whole = await new Blob(parts as Uint8Array<ArrayBuffer>[]).arrayBuffer();
  const tail = new Uint8Array(whole, Math.max(0, whole.byteLength - bytes));
  const size = open ? whole.byteLength : info.size;
  return { text: fromFirstLine(tail, size), size, shown: tail.byteLength, open };
}

/** Enough of the last chunks for so many bytes. Those of other objects may lie between them. */
async function readLastChunks(bus: Bus, subject: string, info: ObjectInfo, bytes: number): Promise<Uint8Array[]> {
  const stream = bus.contract.artifacts;
  const last = await bus.last(stream, subject);
  if (!last) return [];
  const wanted = info.chunks ? Math.min(info.chunks, Math.ceil((bytes * info.chunks) / info.size) + 1) : CHUNKS_OF_OPEN;
  for (let span = wanted; ; span *= 4) {
    const start = Math.max(1, last.seq - span + 1);
    const parts: Uint8Array[] = [];
    for await (const each of bus.read(stream, { next_by_subj: subject, seq: start, batch: CHUNKS_PER_READ })) {
      parts.push(each.data);
    }
    if (parts.length >= wanted || start === 1) return parts.slice(-wanted);
  }
}

/** A tail begins at a whole line, unless it is all one line. */
function fromFirstLine(tail: Uint8Array, size: number): string {
  const cut = tail.byteLength < size ? tail.indexOf(10) + 1 : 0;
  return new TextDecoder().decode(tail.subarray(cut));
}
