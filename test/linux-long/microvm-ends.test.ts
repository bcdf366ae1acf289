import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { ExitReason } from '../../src/index.js';
import { bootGuests, linuxGuest, sharedFolder, type GuestReport } from '../support/linux-guests.js';

/** What a guest does, and how its machine calls it. */
const ENDS: Record<string, ExitReason> = {
  'exit 200': 'shutdown',
  'poweroff -f': 'shutdown',
  'reboot -f': 'reset',
  'halt -f': 'halt',
  'echo c >/proc/sysrq-trigger': 'panic',
};

describe.each(['kvm', 'tcg'] as const)('a MicroVM under %s', (accel) => {
  let guests: Record<string, GuestReport>;

  beforeAll(async () => {
    await using scratch = await sharedFolder();
    // A guest that does what it is told.
    const guest = await linuxGuest(join(scratch.path, 'guest.cpio'), {
      modules: ['pvpanic-mmio'],
      command: ['sh', '-c', 'echo ready; read -r line; eval "$line"'],
    });
    const withoutPvpanic = await linuxGuest(join(scratch.path, 'plain.cpio'), {
      command: ['sh', '-c', 'echo c >/proc/sysrq-trigger'],
    });
    const told = (line: string) => [{ when: 'ready', act: 'type', text: `${line}\n` } as const];
    guests = await bootGuests(
      [
        ...Object.keys(ENDS).map((line) => ({ name: line, options: guest, steps: told(line) })),
        // By the keyboard controller.
        { name: 'reboot=k', options: { ...guest, cmdline: 'quiet reboot=k' }, steps: told('reboot -f') },
        // Linux reboots by INT3 with an empty IDT, when it is told to.
        { name: 'crash', options: { ...guest, cmdline: 'quiet reboot=t' }, steps: told('reboot -f') },
        { name: 'panic', options: withoutPvpanic },
        { name: 'stop', options: guest, steps: [{ when: 'ready', act: 'stop' }] },
      ],
      accel,
    );
  });

  it.each(Object.entries(ENDS))('that says "%s" ends for reason %s', (line, reason) => {
    const { exit, error, output } = guests[line];
    const status = line === 'exit 200' ? { debugExit: 200 } : {};
    expect({ exit, error }, output).toEqual({ exit: { reason, ...status }, error: undefined });
  });

  it('is reset by its keyboard controller', () => {
    const { exit, error, output } = guests['reboot=k'];
    expect({ exit, error }, output).toEqual({ exit: { reason: 'reset' }, error: undefined });
  });

  it('crashes when it faults three times over, and tells where', ({ skip }) => {
    const { exit, error } = guests['crash'];
    expect({ reason: exit?.reason, error }).toEqual({ reason: 'crash', error: undefined });
    expect(exit!.crash!.cause).toContain('triple fault');
    skip(accel === 'kvm', 'the KVM of an AMD resets a processor before it reports that it shut down');
    expect(exit!.crash!.disassembly[0]).toMatch(/^f[0-9a-f]{15} {2}int3$/);
    expect(exit!.crash!.registers).toMatchObject({ cs: '0x10' });
  });

  it('is reset by a panic that it has no device to tell of', () => {
    const { exit, error, output } = guests['panic'];
    expect({ exit, error }, output).toEqual({ exit: { reason: 'reset' }, error: undefined });
  });

  it('is stopped by the host', () => {
    const { exit, error } = guests['stop'];
    expect({ exit, error }).toEqual({ exit: { reason: 'stopped' }, error: undefined });
  });
});
