import { statusOfSignal } from './exit-status.js';

/** What asks a program to end in good order. */
export const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** A signal asked this process to end. */
export class Interrupted extends Error {
  /** What to exit with. */
  readonly status: number;

  constructor(signal: NodeJS.Signals) {
    super(signal);
    this.status = statusOfSignal(signal);
  }
}

/**
 * Runs `action` under an AbortSignal that one of {@link SIGNALS} aborts.
 *
 * @throws Interrupted when `action` ended because of that.
 */
export async function interruptible<T>(action: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const aborter = new AbortController();
  const onSignal = (signal: NodeJS.Signals) => aborter.abort(new Interrupted(signal));
  for (const signal of SIGNALS) process.on(signal, onSignal);
  try {
    return await action(aborter.signal);
  } catch (error) {
    throw aborter.signal.aborted ? aborter.signal.reason : error;
  } finally {
    for (const signal of SIGNALS) process.off(signal, onSignal);
  }
}
