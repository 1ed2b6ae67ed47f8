// Where the bus is and who we are there. Secrets stay in this tab: they are never stored elsewhere or sent to the page's server.
import type { Place, SignIn } from "./bus";

const KEY = "h2kbus.sign-in";
const FALLBACK = { root: "h2k.v1", submitter: "web", inboxPrefix: "", apiPrefix: "$JS.API" };

export interface Remembered {
  place: Place;
  who: SignIn;
}

export const NOBODY: SignIn = { kind: "none", user: "", secret: "" };

/** What the page's server says of the bus. */
export async function readPlace(): Promise<Place> {
  const answer = await fetch("settings.json", { cache: "no-store" });
  if (!answer.ok) throw new Error(`settings.json: ${answer.status}`);
  const given = (await answer.json()) as Partial<Place>;
  const known = Object.fromEntries(Object.entries(given).filter(([, value]) => value));
  return { websocket: `ws://${location.hostname}:4280`, ...FALLBACK, ...known };
}

/** The token of a link that `h2kbus dashboard` has printed; it is taken out of the address at once. */
export function tokenFromLink(): string | null {
  const found = /^#token=(.+)$/.exec(location.hash)?.[1];
  if (!found) return null;
  history.replaceState(null, "", location.pathname);
  return decodeURIComponent(found);
}

export function remember(sign: Remembered | null): void {
  if (sign) sessionStorage.setItem(KEY, JSON.stringify(sign));
  else sessionStorage.removeItem(KEY);
}

/** How this tab was signed in before it was loaded again, if that was at the same bus. */
export function remembered(place: Place): Remembered | null {
  try {
    const sign = JSON.parse(sessionStorage.getItem(KEY) ?? "null") as Remembered | null;
    return sign?.place.websocket === place.websocket ? sign : null;
  } catch {
    return null;
  }
}

/** A name as it may stand in a subject. */
export const subjectToken = (name: string) => name.replace(/[^A-Za-z0-9_-]/g, "_").slice(0, 64);
