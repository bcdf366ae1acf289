/** A guest on a tap interface of its host: packets both ways, with the offloads that the host's kernel takes part in. */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { bootGuests, linuxGuest, sharedFolder, type GuestPlan, type GuestReport } from '../support/linux-guests.js';
import { nestedShell } from '../support/nested.js';

const nested = nestedShell(300_000);

const TRANSPORTS = ['pci', 'mmio'] as const;
const MIB = 2 ** 20;
const DOWNLOAD_MIB = 20;
const UPLOAD_BYTES = 4 * MIB;
const HELLO = 'hello over tap';

const addresses = (index: number) => ({ host: `10.77.${index}.1`, guest: `10.77.${index}.2`, tap: `vmtap${index}` });

const script = (host: string) => `
ping -c 3 -W 5 ${host} | grep 'packets transmitted'
wget -q -O - http://${host}:8000/
echo
echo "large: $(wget -q -O - http://${host}:8000/large | sha256sum | cut -c 1-64)"
mkdir /www; yes 'sent by the guest' | head -c ${UPLOAD_BYTES} >/www/large
httpd -h /www -p 80
echo 'server: up'
read line
echo "rx $(cat /sys/class/net/eth0/statistics/rx_packets) tx $(cat /sys/class/net/eth0/statistics/tx_packets)"
`;

describe('a tap interface', () => {
  let scratch: Awaited<ReturnType<typeof sharedFolder>>;
  let guests: Record<string, GuestReport>;
  const packets: Record<string, { rx: number; tx: number }> = {};

  beforeAll(async () => {
    scratch = await sharedFolder();
    const plans: GuestPlan[] = [];
    for (const [index, transport] of TRANSPORTS.entries()) {
      const { host, guest, tap } = addresses(index);
      await nested(`ip link show ${tap} >/dev/null 2>&1 || ip tuntap add ${tap} mode tap`);
      await nested(`ip address replace ${host}/24 dev ${tap} && ip link set ${tap} up`);
      const { modules } = guestSetup({ console: 'serial', drives: 0, nets: 1, rng: false, transport });
      const options = await linuxGuest(join(scratch.path, `${transport}.cpio`), {
        modules,
        setup: [`ip address add ${guest}/24 dev eth0`, 'ip link set eth0 up'],
        command: ['sh', '-c', script(host)],
      });
      plans.push({
        name: transport,
        options: { ...options, virtioTransport: transport, net: [{ type: 'tap', name: tap }] },
        serve: { address: host, port: 8000, body: HELLO, largeBytes: DOWNLOAD_MIB * MIB },
        steps: [
          { when: 'server: up', act: 'fetch', url: `http://${guest}/large`, as: 'large' },
          { when: 'server: up', act: 'type', text: 'enough\n' },
        ],
      });
    }
    guests = await bootGuests(plans);
    for (const [index, transport] of TRANSPORTS.entries()) {
      const { tap } = addresses(index);
      const count = async (which: string) =>
        Number(await nested(`cat /sys/class/net/${tap}/statistics/${which}_packets`));
      packets[transport] = { rx: await count('rx'), tx: await count('tx') };
      await nested(`ip link delete ${tap}`);
    }
  });

  afterAll(() => scratch[Symbol.asyncDispose]());

  describe.each(TRANSPORTS)('over %s', (transport) => {
    it('carries the guest’s pings, and its downloads from the host', () => {
      const { exit, error, output } = guests[transport];
      expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 0 }, error: undefined });
      expect(output).toContain('3 packets transmitted, 3 packets received, 0% packet loss\n');
      expect(output).toContain(`${HELLO}\n`);
      const zeros = createHash('sha256')
        .update(new Uint8Array(DOWNLOAD_MIB * MIB))
        .digest('hex');
      expect(output).toContain(`large: ${zeros}\n`);
    });

    it('carries what the host fetches from the guest', () => {
      const line = 'sent by the guest\n';
      const sent = line.repeat(Math.ceil(UPLOAD_BYTES / line.length)).slice(0, UPLOAD_BYTES);
      expect(guests[transport].fetched['large'] === sent).toBe(true);
    });

    it('lets segments cross whole: fewer packets than frames of 1500 bytes would be', () => {
      const [, rx, tx] = /^rx (\d+) tx (\d+)$/m.exec(guests[transport].output)!.map(Number);
      const host = packets[transport];
      console.log(
        `tap over ${transport}: the guest counts ${rx} in, ${tx} out; the host ${host.tx} out, ${host.rx} in`,
      );
      expect(host.tx).toBeLessThan((DOWNLOAD_MIB * MIB) / 1500);
      expect(host.rx).toBeLessThan(UPLOAD_BYTES / 1500 + host.tx);
    });
  });
});
