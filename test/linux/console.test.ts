import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { bootGuests, linuxGuest, sharedFolder, type GuestReport } from '../support/linux-guests.js';

const ECHO_BYTES = 2 ** 20;

/** Says the terminal's size before and after a resize; sends back what comes by the named ports. */
const SCRIPT = `
echo "size: $(stty size 2>/dev/null)"
echo 'resize: now'; read line
echo "resized: $(stty size 2>/dev/null)"
for port in /sys/class/virtio-ports/*; do
  name=$(cat $port/name 2>/dev/null)
  [ -n "$name" ] || continue
  echo "port: $name"
  (exec 3<>/dev/$(basename $port); head -c ${ECHO_BYTES} <&3 >/tmp/$name; cat /tmp/$name >&3) &
done
echo 'ports: open'; read line
wait
`;

describe("a virtio console's ports", () => {
  let guests: Record<string, GuestReport>;

  beforeAll(async () => {
    await using scratch = await sharedFolder();
    const devices = { console: 'virtio', drives: 0, nets: 0, rng: false } as const;
    const guest = (transport: 'pci' | 'mmio') =>
      linuxGuest(join(scratch.path, `${transport}.cpio`), {
        ...guestSetup({ ...devices, transport }),
        command: ['sh', '-c', SCRIPT],
      });
    const steps = [
      { when: 'resize: now', act: 'resizeConsole', columns: 132, rows: 43 },
      { when: 'resize: now', act: 'type', text: 'done\n' },
      { when: 'ports: open', act: 'echo', port: 'org.example.agent', bytes: ECHO_BYTES },
      { when: 'ports: open', act: 'echo', port: 'org.example.log', bytes: ECHO_BYTES },
      { when: 'ports: open', act: 'type', text: 'done\n' },
    ] as const;
    const consolePorts = ['org.example.agent', 'org.example.log'];
    guests = await bootGuests([
      {
        name: 'virtio',
        options: { ...(await guest('pci')), console: 'virtio', consolePorts },
        consoleSize: { columns: 100, rows: 30 },
        steps: [...steps],
      },
      {
        name: 'serial',
        options: { ...(await guest('mmio')), virtioTransport: 'mmio', consolePorts, cpus: 2 },
        steps: steps.filter(({ act }) => act !== 'resizeConsole'),
      },
    ]);
  });

  it.each(['virtio', 'serial'])('carry a megabyte to the guest and back beside a %s console', (name) => {
    const { output, exit, error, echoed } = guests[name];
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 0 }, error: undefined });
    expect(output).toContain('port: org.example.agent');
    expect(echoed).toEqual({ 'org.example.agent': ECHO_BYTES, 'org.example.log': ECHO_BYTES });
  });

  it("follow the terminal's size", () => {
    const { output } = guests['virtio'];
    expect(output).toContain('size: 30 100\n');
    expect(output).toContain('resized: 43 132\n');
  });
});
