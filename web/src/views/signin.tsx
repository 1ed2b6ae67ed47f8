// Signing in: which kind of credentials, and the credentials.
import { useState } from "preact/hooks";
import type { BusError, Place, SignIn } from "../bus";
import { subjectToken } from "../signin";
import { Field, Problem } from "./parts";

const KINDS: Record<SignIn["kind"], string> = {
  token: "Token",
  password: "User and password",
  nkey: "NKey seed",
  creds: "Credentials file",
  none: "Nothing (an open bus)",
};

interface Props {
  place: Place;
  busy: boolean;
  problem: BusError | null;
  onSignIn: (place: Place, who: SignIn) => void;
}

export function SignInForm({ place, busy, problem, onSignIn }: Props) {
  const [kind, setKind] = useState<SignIn["kind"]>(place.inboxPrefix ? "nkey" : "token");
  const [user, setUser] = useState("");
  const [secret, setSecret] = useState("");
  const [where, setWhere] = useState(place);
  const change = (field: keyof Place) => (value: string) => setWhere({ ...where, [field]: value.trim() });

  const submit = (event: Event) => {
    event.preventDefault();
    const submitter = subjectToken(kind === "password" && where.submitter === place.submitter ? user : where.submitter);
    onSignIn({ ...where, submitter: submitter || place.submitter }, { kind, user, secret });
    setSecret("");
  };

  return (
    <main class="sign-in">
      <form class="card" onSubmit={submit} aria-labelledby="sign-in-title">
        <h1 id="sign-in-title">
          <img src="icon.svg" alt="" width="28" height="28" /> h2kbus
        </h1>
        <p class="muted">
          Bus at <code>{place.websocket}</code>
        </p>
        {problem && <Problem error={problem} />}
        <label class="field">
          <span id="kind-label">Sign in with</span>
          <select
            aria-labelledby="kind-label"
            value={kind}
            onChange={(event) => setKind(event.currentTarget.value as SignIn["kind"])}
          >
            {Object.entries(KINDS).map(([value, label]) => (
              <option key={value} value={value}>
                {label}
              </option>
            ))}
          </select>
        </label>
        {kind === "password" && <Field label="User" value={user} onInput={setUser} autocomplete="username" required />}
        {kind === "creds" ? (
          <label class="field">
            <span>Content of the .creds file</span>
            <textarea
              rows={6}
              value={secret}
              onInput={(event) => setSecret(event.currentTarget.value)}
              spellcheck={false}
              required
            />
          </label>
        ) : (
          kind !== "none" && (
            <Field
              label={kind === "password" ? "Password" : KINDS[kind]}
              type="password"
              value={secret}
              onInput={setSecret}
              autocomplete="current-password"
              required
            />
          )
        )}
        <details>
          <summary>More about this bus</summary>
          <Field label="Root of the subjects" value={where.root} onInput={change("root")} />
          <Field label="Submit as" value={where.submitter} onInput={change("submitter")} />
          <Field label="Inbox prefix" value={where.inboxPrefix} placeholder="_INBOX" onInput={change("inboxPrefix")} />
          <Field label="JetStream API prefix" value={where.apiPrefix} onInput={change("apiPrefix")} />
        </details>
        <button class="primary" disabled={busy}>
          {busy ? "Connecting…" : "Connect"}
        </button>
        <p class="muted small">Secrets stay in this tab and go to the bus only.</p>
      </form>
    </main>
  );
}
