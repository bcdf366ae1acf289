/** HOSTILE case 25: misuse of the host API, in processes of its own. */
import { execa } from 'execa';
import { fileURLToPath } from 'node:url';
import { expect, it, vi } from 'vitest';
import { Kvm, VmmError } from 'vmexit/kvm';
import { createGuest } from '../support/guests.js';
import { describeKvm } from '../support/kvm.js';

const HANG_MS = 600_000;
vi.setConfig({ testTimeout: HANG_MS });
const PROGRAM = fileURLToPath(new URL('programs/misuse.ts', import.meta.url));

interface Fuzzed {
  seed: number;
  calls: number;
  violations: string[];
}

async function fuzz(seed: number, runs: number, threads: number): Promise<Fuzzed[]> {
  const { stdout, stderr, exitCode, signal } = await execa(
    process.execPath,
    ['--import', 'tsx', PROGRAM, String(seed), String(runs), String(threads)],
    { reject: false, timeout: HANG_MS, killSignal: 'SIGKILL' },
  );
  expect({ seed, exitCode, signal, stderr: exitCode === 0 ? '' : stderr }).toEqual({ seed, exitCode: 0, stderr: '' });
  return stdout.split('\n').map((line) => JSON.parse(line) as Fuzzed);
}

/** Every public method, by class, on an object that `make` has closed. */
const CLOSED: Record<string, () => object> = {
  Kvm: () => close(Kvm.open()),
  Vm: () => close(createGuest('hello').vm),
  Vcpu: () => close(createGuest('hello').vcpu),
  GuestRam: () => close(createGuest('hello').ram),
};
/** What says nothing about the kernel's object, or must work twice. */
const HARMLESS = ['constructor', 'close', 'irqLine', 'vcpus', 'exits', 'exit'];

function close<T extends { close: () => void }>(object: T): T {
  object.close();
  object.close();
  return object;
}

describeKvm('misuse of vmexit/kvm', () => {
  it.each(Object.keys(CLOSED))(
    'every method of a closed %s throws a VmmError or a TypeError, most of them CLOSED',
    (name) => {
      const object = CLOSED[name]() as Record<string, unknown>;
      const prototype = Object.getPrototypeOf(object) as object;
      const codes: Record<string, string> = {};
      for (const [member, descriptor] of Object.entries(Object.getOwnPropertyDescriptors(prototype))) {
        if (HARMLESS.includes(member)) continue;
        try {
          const value = 'get' in descriptor ? object[member] : (object[member] as () => unknown)();
          codes[member] = `returned ${typeof value}`;
        } catch (error) {
          codes[member] = error instanceof VmmError ? error.code : (error as Error).constructor.name;
        }
      }
      const kinds = new Set(Object.values(codes));
      for (const kind of kinds)
        expect(['CLOSED', 'INVALID_ARGUMENT', 'TypeError', 'KVM_UNSUPPORTED'], JSON.stringify(codes)).toContain(kind);
      expect(Object.values(codes).filter((code) => code === 'CLOSED').length, JSON.stringify(codes)).toBeGreaterThan(0);
    },
  );

  it('ends in VmmError or TypeError whatever is called with whatever, in any order', async () => {
    const seed = Date.now() % 2 ** 31;
    const [{ calls, violations }] = await fuzz(seed, 800, 1);
    expect({ seed, violations }).toEqual({ seed, violations: [] });
    expect(calls).toBeGreaterThan(10_000);
  });

  it('does so in several threads at once, which name each other’s memory and vCPUs', async () => {
    const seed = (Date.now() + 1) % 2 ** 31;
    const results = await fuzz(seed, 500, 4);
    expect(results).toHaveLength(4);
    for (const { violations } of results) expect({ seed, violations }).toEqual({ seed, violations: [] });
  });
});
