import { VmmError } from '../errors.js';
import type { GuestArch } from '../guest/arch.js';
import { chooseAccelerator } from '../machine/accelerator.js';
import { checkBoot, isQemuMachine, type MachineType } from '../machine/machine-type.js';
import { deviceConfig, guestDevices, type DeviceOptions } from './device-options.js';
import type { CpuTemplate } from '../machine/cpuid-policy.js';
import { MachineThread } from '../machine/machine-thread.js';
import { isForeignKernel } from '../machine/foreign.js';
import { statusAsInQemu } from './exit-status.js';
import { prepareImages, prepareQemu } from './images.js';
import { say } from './output.js';
import { runSession, type SessionResult } from './session.js';
import { statsJson, statsTable } from './stats-table.js';

export interface RunOptions extends DeviceOptions {
  arch: GuestArch;
  machine: MachineType;
  firmware?: string;
  kernel?: string;
  initrd?: string;
  cmdline?: string;
  cpus: number;
  cpu: CpuTemplate;
  memory: string;
  accel: 'auto' | 'kvm' | 'tcg';
  testdev?: boolean;
  /** In seconds. */
  timeout?: number;
  stats?: boolean;
  json?: boolean;
}

/** `vmexit run`. @returns What to exit with. */
export async function run(command: readonly string[], options: RunOptions): Promise<number> {
  const interactive = Boolean(process.stdin.isTTY && process.stdout.isTTY);
  const hasCommand = command.length > 0;
  if (options.initrd !== undefined && hasCommand) {
    throw new VmmError('INVALID_ARGUMENT', 'a COMMAND is run by the initramfs of vmexit: leave --initrd out, or it');
  }
  if (options.json && !options.stats) throw new VmmError('INVALID_ARGUMENT', '--json is about --stats: give both');
  const { arch, machine: type, firmware, kernel, cpus, cpu: cpuTemplate, memory, accel, timeout, testdev } = options;
  const devices = deviceConfig(options);
  const timeoutMs = timeout === undefined ? undefined : timeout * 1000;
  // It starts while the accelerator is chosen and the images are made.
  if (accel !== 'tcg' && arch === 'x86_64' && !isQemuMachine(type)) MachineThread.prepare();
  const { accel: chosen, reason } = chooseAccelerator(accel, arch, type);
  // An insisting user hears why it may fail.
  if (interactive || (accel === 'kvm' && reason.includes('cannot run'))) say(reason);

  // A disk is there to be booted, unless there is something else to be run.
  const bootsDisk = isQemuMachine(type) && kernel === undefined && !hasCommand && devices.drives.length > 0;
  const { drives, net } = devices;
  // Before anything is fetched. Without a kernel of the user's there is Debian's.
  checkBoot({ ...options, drives, net, kernel: bootsDisk ? undefined : (kernel ?? '') });
  if (isQemuMachine(type)) await prepareQemu(arch, firmware);
  const foreign = arch === 'x86_64' && kernel !== undefined && (await isForeignKernel(kernel));
  if (foreign && hasCommand) {
    throw new VmmError(
      'INVALID_ARGUMENT',
      'a COMMAND is for Linux; give a Multiboot kernel its arguments by --cmdline',
    );
  }

  const machine = { arch, machine: type, firmware, cpus, cpuTemplate, memory, accel, testdev, ...devices };
  let result: SessionResult;
  if (bootsDisk || options.initrd !== undefined || foreign) {
    if (!bootsDisk && kernel === undefined) throw new VmmError('INVALID_ARGUMENT', '--initrd needs --kernel');
    if (interactive) sayEscape();
    result = await runSession({
      vm: {
        kernel,
        initrd: options.initrd,
        cmdline: options.cmdline,
        ...machine,
      },
      interactive,
      timeoutMs,
      ...(foreign && { statusOfDebugExit: statusAsInQemu }),
    });
  } else {
    await using images = await prepareImages(chosen, {
      arch,
      kernelPath: kernel,
      command: hasCommand ? command : undefined,
      interactive,
      devices: guestDevices(devices),
    });
    if (interactive) sayEscape();
    result = await runSession({
      vm: {
        kernel: images.kernelPath,
        initrd: images.initrdPath,
        cmdline: options.cmdline ?? 'quiet',
        ...machine,
      },
      mark: images.mark,
      // Who chooses the kernel's parameters wants to see what it says.
      showBoot: options.cmdline !== undefined,
      interactive,
      timeoutMs,
    });
  }
  if (options.stats) process.stderr.write(`${options.json ? statsJson(result) : statsTable(result)}\n`);
  return result.status;
}

function sayEscape(): void {
  say('Ctrl-] leaves the guest.');
}
