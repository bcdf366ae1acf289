import { readFileSync } from 'node:fs';
import { Command, InvalidArgumentError, Option } from 'commander';
import type { BenchOptions } from './bench.js';
import { addDevice, addDrive, addNet, addPort, addShare, addVhostUser, parseVsock } from './device-options.js';
import { EXIT_STATUS_HELP } from './exit-status.js';
import type { ServeDeviceOptions } from '../machine/serve-device.js';
import type { RunOptions } from './run.js';

const DEVICES_HELP = `
Devices (--drive, --net, --share, --device, --vhost-user, --rng, --balloon, --vsock, --console virtio): some need KVM. The initramfs that vmexit makes loads
their drivers and gets every network card its address by DHCP; a kernel given by --kernel must have the drivers built in.
The first disk is /dev/vda in the guest, to be mounted by COMMAND:
  vmexit run --drive disk.img -- sh -c 'mount /dev/vda /mnt && ls /mnt'
  vmexit run --share .:src:ro -- ls /mnt/src
  vmexit run -p 8080:80 -- httpd -f -h /etc
A disk with a boot loader and a system of its own, without a COMMAND, boots in a PC of QEMU's:
  vmexit run --machine q35 --firmware ovmf --memory 2G --drive disk.qcow2
`;

// Each command's files, some hundred in all, are loaded when it is asked for.
const run = async (command: string[], options: RunOptions) => (await import('./run.js')).run(command, options);
const demo = async () => (await import('./demo.js')).demo();
const doctor = async (options: { json?: boolean }) => (await import('./doctor.js')).doctor(options);
const serve = async (options: ServeDeviceOptions) => (await import('./serve-device.js')).serve(options);
const bench = async (paths: string[], options: BenchOptions, version: string) =>
  (await import('./bench.js')).bench(paths, options, version);

/**
 * The command line. Wrong usage throws `CommanderError`, after its message was printed.
 *
 * @param exit Takes the status to exit with.
 */
export function makeProgram(exit: (status: number) => void): Command {
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  const program = new Command('vmexit')
    .description('Virtual machines from Node.js: KVM where it works, QEMU where it does not.')
    .version(version)
    .enablePositionalOptions()
    .showHelpAfterError('(vmexit --help shows what there is)')
    .exitOverride();

  program
    .command('run')
    .summary('boot a guest, for a shell or for one command')
    .description(
      'Boots a Linux guest: for a shell where there is a terminal, for COMMAND where one is given. Without --kernel, ' +
        "Debian's cloud kernel is fetched, once; without --initrd, an initramfs with busybox is made. " +
        'With --machine pc or q35, a disk may be booted instead.',
    )
    .argument('[command...]', 'what to run in the guest, after `--`')
    .option('--kernel <file>', 'kernel to boot: a bzImage (vmlinuz), an ELF vmlinux, or a Multiboot kernel')
    .option('--initrd <file>', 'initial RAM disk to boot with')
    .option('--cmdline <string>', 'kernel parameters (default: quiet); boot messages then go to standard error')
    .addOption(
      new Option('--arch <arch>', "the guest's architecture; another than this host's is emulated")
        .choices(['x86_64', 'aarch64', 'riscv64'])
        .default('x86_64'),
    )
    .addOption(
      new Option('--machine <type>', "microvm, or a PC of QEMU's, which boots disks that have a boot loader")
        .choices(['microvm', 'pc', 'q35'])
        .default('microvm'),
    )
    .option('--firmware <firmware>', 'of a pc or q35: seabios (the default), ovmf (UEFI), or a file')
    .option('--cpus <n>', 'virtual CPUs', parsePositiveInteger, 1)
    .addOption(
      new Option('--cpu <template>', 'what the CPUs can do: all that KVM supports here, or what every recent host has')
        .choices(['host', 'baseline'])
        .default('host'),
    )
    .option('--memory <size>', 'guest RAM, such as 256M or 2G', '256M')
    .addOption(
      new Option('--accel <accel>', 'what runs the guest; auto: KVM where it is sound, else TCG')
        .choices(['auto', 'kvm', 'tcg'])
        .default('auto'),
    )
    .option(
      '--drive <disk>',
      'add a disk: PATH[,ro][,serial=S], a raw image or a block device, or PATH[,backend=qemu][,format=raw|qcow2][,cache=writeback|writethrough][,ro]; repeatable',
      addDrive,
    )
    .option('--net <network>', 'add a network card: user (passt, without privileges), tap=NAME, or none', addNet)
    .option('-p, --publish <port>', 'forward [ADDRESS:]HOST:GUEST[/udp] into the guest; implies --net user', addPort)
    .option(
      '--share <share>',
      'share a directory, mounted at /mnt/TAG: DIR:TAG[:ro][,ids=passthrough], or DIR:TAG[:ro],backend=virtiofsd',
      addShare,
    )
    .option(
      '--device <device>',
      'add a PCI device of QEMU: nvme,serial=S,drive=PATH, e1000,netdev=user, lsi53c895a,attach=scsi-hd,drive=PATH …; repeatable',
      addDevice,
    )
    .option(
      '--vhost-user <device>',
      'add a virtio device of a backend of yours: blk,socket=PATH, net,socket=PATH, fs,socket=PATH,tag=TAG, rng,socket=PATH, or ID,socket=PATH,queues=N[,config=BYTES]; repeatable',
      addVhostUser,
    )
    .addOption(new Option('--console <device>', "the guest's console").choices(['serial', 'virtio']).default('serial'))
    .option('--balloon', 'add a memory balloon: memory that the guest does not use goes back to the host')
    .option('--testdev', "add QEMU's test device, for kernels that test a hypervisor")
    .option('--rng', 'add an entropy device')
    .option(
      '--vsock <cid>',
      'add sockets without a network: CID[,uds=PATH], the socket for tools of the host',
      parseVsock,
    )
    .addOption(
      new Option('--virtio <transport>', 'how virtio devices are attached').choices(['pci', 'mmio']).default('pci'),
    )
    .option('--timeout <seconds>', 'stop the guest after this time', parsePositive)
    .option('--stats', 'print what the run cost, on standard error')
    .option('--json', 'print --stats as JSON')
    .addHelpText('after', DEVICES_HELP + EXIT_STATUS_HELP)
    .passThroughOptions()
    .action(async (command: string[], options: RunOptions) => exit(await run(command, options)));

  program
    .command('doctor')
    .summary("measure what this host's virtualization can do")
    .description("Measures what this host's virtualization can and cannot do, and says what to do about each lack.")
    .option('--json', 'print everything as JSON')
    .action(async (options: { json?: boolean }) => exit(await doctor(options)));

  program
    .command('bench')
    .summary('measure the paths between a guest and its host')
    .description(
      'Measures what exits, lifecycles and boots cost here, beside the same work in C; prints tables, and writes a ' +
        'report with charts and the samples themselves.',
    )
    .argument('[path...]', 'what to measure: exits, exits/pio-out …; default: everything')
    .option('--quick', 'fewer and shorter rounds: within two minutes, for a first look')
    .option('--list', 'list what can be measured')
    .addOption(
      new Option(
        '--kernel-config <config>',
        "what boots: Debian's kernel, or one for microVMs, built here once of its source",
      )
        .choices(['debian', 'microvm'])
        .default('debian'),
    )
    .option('--json <file>', 'where the report goes for programs', 'report.json')
    .option('--html <file>', 'where the report goes for people', 'report.html')
    .option('--compare <file>', 'say what changed beyond noise since the run whose --json this is')
    .action(async (paths: string[], options: BenchOptions) => exit(await bench(paths, options, version)));

  program
    .command('demo')
    .summary('boot a guest and show it')
    .description(
      'Boots a guest and shows it: a shell where there is a terminal, else a few commands. Then what it cost.',
    )
    .action(async () => exit(await demo()));

  addServeDevice(program);
  return program;
}

/** `vmexit serve-device KIND`: a command a kind, each with the options of its own. */
function addServeDevice(program: Command): void {
  const serveDevice = program
    .command('serve-device')
    .summary('serve a virtio device to QEMU')
    .description(
      'Serves a virtio device of vmexit at a Unix socket, by vhost-user, for QEMU or another VMM; says what QEMU needs.',
    );
  const kind = (name: ServeDeviceOptions['type'], description: string) =>
    serveDevice.command(name).description(description).requiredOption('--socket <path>', 'where to listen');

  kind('blk', 'a disk')
    .requiredOption('--path <image>', 'a raw image or a block device')
    .option('--ro', 'refuse writes')
    .option('--serial <text>', 'serial number')
    .option(
      '--queues <n>',
      "the most queues, as many as the guest's vCPUs at least (default: 16)",
      parsePositiveInteger,
    )
    .action(
      ({ ro = false, ...options }: { socket: string; path: string; ro?: boolean; serial?: string; queues?: number }) =>
        serve({ type: 'blk', readOnly: ro, ...options }),
    );
  kind('rng', 'an entropy device').action(({ socket }: { socket: string }) => serve({ type: 'rng', socket }));
  kind('vsock', 'sockets between host and guest')
    .requiredOption('--cid <cid>', "the guest's context ID, 3 or more", parsePositiveInteger)
    .option('--uds <path>', "socket for the host's programs")
    .action(({ uds, ...options }: { socket: string; cid: number; uds?: string }) =>
      serve({ type: 'vsock', udsPath: uds, ...options }),
    );
  kind('net', 'a network card behind passt, or on a tap interface')
    .option('--tap <name>', 'a tap interface of the host')
    .option('-p, --publish <port>', 'forward [ADDRESS:]HOST:GUEST[/udp] into the guest, without --tap', addPort)
    .action(({ socket, tap, publish = [] }: { socket: string; tap?: string; publish?: string[] }) =>
      serve({
        type: 'net',
        socket,
        net: tap === undefined ? { type: 'user', forwards: publish } : { type: 'tap', name: tap },
      }),
    );
}

function parsePositive(text: string): number {
  const value = Number(text);
  if (!(value > 0) || value > 2 ** 31 / 1000) throw new InvalidArgumentError('It must be a number above 0.');
  return value;
}

function parsePositiveInteger(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1) throw new InvalidArgumentError('It must be a whole number above 0.');
  return value;
}
