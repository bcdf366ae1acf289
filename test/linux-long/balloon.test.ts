import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import type { MicroVMOptions } from '../../src/index.js';
import { bootGuests, linuxGuest, sharedFolder, type GuestPlan, type GuestReport } from '../support/linux-guests.js';

const MIB = 2 ** 20;
/** The guest fills 256 MiB of page cache, and says so; then it throws them away. */
const FILL = 'dd if=/dev/zero of=/tmp/file bs=1M count=256 2>/dev/null; echo filled';
const WAIT = 'read -r line';

describe.each(['pci', 'mmio'] as const)('a memory balloon over %s, under a real KVM', (transport) => {
  let scratch: Awaited<ReturnType<typeof sharedFolder>>;
  let guests: Record<string, GuestReport>;

  beforeAll(async () => {
    scratch = await sharedFolder();
    const devices = { console: 'serial', drives: 0, nets: 0, rng: false, balloon: true, transport } as const;
    const guest = async (script: string): Promise<MicroVMOptions> => {
      const { modules, setup } = guestSetup(devices);
      const options = { modules, setup, command: ['sh', '-c', `mkdir -p /tmp; mount -t tmpfs tmpfs /tmp; ${script}`] };
      const image = await linuxGuest(join(scratch.path, `${script.length}.cpio`), options);
      return { ...image, memory: '512M', balloon: true, virtioTransport: transport };
    };
    const plans: GuestPlan[] = [
      {
        name: 'reporting',
        options: await guest(`${FILL}; ${WAIT}; rm /tmp/file; echo freed; ${WAIT}; echo over`),
        steps: [
          { when: 'filled', act: 'balloonStats', as: 'filled' },
          { when: 'filled', act: 'type', text: '\n' },
          { when: 'freed', act: 'balloonStats', as: 'freed', atMost: 220 * MIB },
          { when: 'freed', act: 'type', text: '\n' },
        ],
      },
      {
        name: 'target',
        options: await guest(`echo ready; ${WAIT}; ${FILL}; ${WAIT}; echo over`),
        steps: [
          { when: 'ready', act: 'balloonStats', as: 'ready' },
          { when: 'ready', act: 'balloon', target: '64M' },
          { when: 'ready', act: 'balloonStats', as: 'inflated', actual: 64 * MIB },
          { when: 'ready', act: 'balloon', target: '0' },
          { when: 'ready', act: 'balloonStats', as: 'deflated', actual: 0 },
          { when: 'ready', act: 'type', text: '\n' },
          { when: 'filled', act: 'balloonStats', as: 'filled' },
          { when: 'filled', act: 'type', text: '\n' },
        ],
      },
    ];
    // One transport is enough for what takes its time.
    guests = await bootGuests(transport === 'pci' ? plans : plans.slice(1));
  });

  afterAll(() => scratch[Symbol.asyncDispose]());

  it.runIf(transport === 'pci')('gives back what the guest has freed, by itself', () => {
    const { exit, error, output, balloon } = guests['reporting'];
    expect({ error, output, exit }).toMatchObject({ error: undefined, exit: { reason: 'shutdown' } });
    const { filled, freed } = balloon;
    expect(filled.residentBytes).toBeGreaterThan(256 * MIB);
    expect(freed.reportedBytes).toBeGreaterThan(256 * MIB);
    expect(filled.residentBytes - freed.residentBytes).toBeGreaterThan(200 * MIB);
    expect(filled.guest!.freeBytes!).toBeLessThan(freed.guest!.freeBytes!);
    expect(freed.guest!.totalBytes!).toBeGreaterThan(400 * MIB);
  });

  it('takes as much from the guest as it is told to, and lets it have it again', () => {
    const { exit, error, output, balloon } = guests['target'];
    expect({ error, output, exit }).toMatchObject({ error: undefined, exit: { reason: 'shutdown' } });
    const { ready, inflated, deflated, filled } = balloon;
    expect(inflated).toMatchObject({ targetBytes: 64 * MIB, actualBytes: 64 * MIB, refused: 0 });
    expect(inflated.inflatedBytes).toBeGreaterThanOrEqual(64 * MIB);
    expect(ready.guest!.freeBytes! - inflated.guest!.freeBytes!).toBeGreaterThan(50 * MIB);
    expect(deflated).toMatchObject({ targetBytes: 0, actualBytes: 0 });
    expect(deflated.guest!.freeBytes! - inflated.guest!.freeBytes!).toBeGreaterThan(50 * MIB);
    expect(filled.residentBytes).toBeGreaterThan(256 * MIB);
  });
});
