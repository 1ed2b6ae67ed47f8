// Numbers, times and sizes as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(count: number): string {
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toFixed(unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2)} ${UNITS[unit]}`;
}

export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  if (whole < 86_400)
    return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

/** How long something took; the tenth of a second matters only when it was quick. */
export const took = (seconds: number) => (seconds < 10 ? `${seconds.toFixed(1)} s` : duration(seconds));

export function ago(moment: string, now = Date.now()): string {
  const seconds = (now - Date.parse(moment)) / 1000;
  return seconds < 2 ? "now" : `${duration(seconds).replace(/ (\d\d (s|min)|\d+ h)$/, "")} ago`;
}

const CLOCK = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const SHORT = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});

export const fullTime = (moment: string) => CLOCK.format(new Date(moment));
export const clockTime = (moment: string) => SHORT.format(new Date(moment));
export const percent = (value: number) => `${value.toFixed(value >= 100 ? 0 : 1)} %`;
export const fileName = (path: string) => path.slice(path.lastIndexOf("/") + 1) || path;
