import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { createGuest, HANG_MS, runToEnd } from '../../support/guests.js';

/** What this process holds. */
export interface Census {
  fds: string[];
  threads: number;
  /** Mappings of guest memory and kvm_run. */
  mappings: number;
}

export interface Comparison {
  before: Census;
  after: Census;
}

export function census(): Census {
  const fds = readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`).replace(/\d+/g, 'N')];
    } catch {
      return []; // the directory's own descriptor
    }
  });
  return {
    fds: fds.sort(),
    threads: readdirSync('/proc/self/task').length,
    mappings: readFileSync('/proc/self/maps', 'utf8').match(/vmexit-guest-memory|kvm-vcpu/g)?.length ?? 0,
  };
}

/** Resident memory that no file is behind (proc(5), status). */
export function ownBytes(): number {
  return Number(/^RssAnon:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024;
}

/** A page of each VM would be more. */
export const LEAK_BYTES = 2048;

/** What was not there before, a line each. */
export function leftBehind({ before, after }: Comparison): string[] {
  const known = [...before.fds];
  const left = after.fds.filter((fd) => {
    const at = known.indexOf(fd);
    if (at >= 0) known.splice(at, 1);
    return at < 0;
  });
  if (after.threads > before.threads) left.push(`${after.threads - before.threads} threads`);
  if (after.mappings > 0) left.push(`${after.mappings} mappings`);
  return left;
}

/** Collects garbage, with the turns of the event loop that its finalizers need, until `isDone`; not for ever. */
export async function settle(isDone: () => boolean = () => true): Promise<void> {
  const MIN_ROUNDS = 5;
  const deadline = performance.now() + HANG_MS;
  for (let round = 0; round < MIN_ROUNDS || (!isDone() && performance.now() < deadline); round++) {
    globalThis.gc!();
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** What there is now, compared with what `use` leaves behind when it has had the time to go. */
export async function compare(use: () => Promise<void>): Promise<Comparison> {
  await settle(() => census().mappings === 0);
  const before = census();
  await use();
  await settle(() => leftBehind({ before, after: census() }).length === 0);
  return { before, after: census() };
}

/** One VM from creation to the end of its guest; closing it is the caller's. */
export function useGuest(): Disposable {
  const guest = createGuest('hello');
  const { text } = runToEnd(guest.vcpu);
  if (text !== 'Test OK\n') throw new Error(`the guest printed ${JSON.stringify(text)}`);
  return guest;
}

/** To the parent process: what was counted. */
export function report(result: unknown): void {
  process.stdout.write(`${JSON.stringify(result)}\n`);
}
