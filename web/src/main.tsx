// The page's entry: sign in, then the views, until the connection ends for good.
import "./style/base.css";
import "./style/parts.css";
import "./style/lists.css";
import "./style/views.css";
import "./style/narrow.css";
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { Bus, BusError, type Place, type SignIn } from "./bus";
import { Model } from "./model";
import { NOBODY, readPlace, remember, remembered, tokenFromLink } from "./signin";
import { Desk } from "./views/desk";
import { Problem } from "./views/parts";
import { SignInForm } from "./views/signin";

interface Session {
  model: Model;
  connected: boolean;
}

function Page({ place }: { place: Place }) {
  const [session, setSession] = useState<Session | null>(null);
  const [problem, setProblem] = useState<BusError | null>(null);
  const [busy, setBusy] = useState(true);

  const connect = async (where: Place, who: SignIn, quiet = false) => {
    setBusy(true);
    setProblem(null);
    try {
      const bus = await Bus.open(where, who);
      const model = new Model(bus);
      model.start();
      remember({ place: where, who });
      setSession({ model, connected: true });
      const end = await bus.watch((connected) => {
        if (connected) model.resync();
        setSession((now) => now && { ...now, connected });
      });
      model.stop();
      setSession(null);
      setProblem(end);
    } catch (error) {
      if (error instanceof BusError) setProblem(quiet && error.code === "PERMISSION_DENIED" ? null : error);
      else throw error;
    } finally {
      remember(null);
      setBusy(false);
    }
  };

  useEffect(() => {
    const token = tokenFromLink();
    const before = remembered(place);
    if (token) void connect(place, { kind: "token", user: "", secret: token });
    else if (before) void connect(before.place, before.who);
    else void connect(place, NOBODY, true);
  }, []);

  if (session) {
    return (
      <Desk model={session.model} connected={session.connected} onSignOut={() => void session.model.bus.close()} />
    );
  }
  return <SignInForm place={place} busy={busy} problem={problem} onSignIn={(where, who) => void connect(where, who)} />;
}

try {
  render(<Page place={await readPlace()} />, document.body);
} catch (error) {
  const problem = new BusError(
    "BAD_SETTINGS",
    `The page's settings cannot be read: ${error}.`,
    "Is `h2kbus dashboard` still running?",
  );
  render(
    <main>
      <Problem error={problem} />
    </main>,
    document.body,
  );
}
