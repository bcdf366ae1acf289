import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { createGuest, runToEnd } from '../../support/guests.js';

/** What this process holds. */
export interface Census {
  fds: string[];
  threads: number;
  rssBytes: number;
  /** Mappings of guest memory and kvm_run. */
  mappings: number;
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
    rssBytes: process.memoryUsage.rss(),
    mappings: readFileSync('/proc/self/maps', 'utf8').match(/vmexit-guest-memory|kvm-vcpu/g)?.length ?? 0,
  };
}

/** Waits until garbage collection and the event loop have done what they had to. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 5; i++) {
    globalThis.gc!();
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
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
