import { readFile } from 'node:fs/promises';
import { ACPI_POWER, writeAcpiTables, type AcpiDevice } from '../boot/acpi.js';
import { loadLinux } from '../boot/linux.js';
import { writeMpTable } from '../boot/mptable.js';
import { Bus } from '../bus/bus.js';
import { AcpiPm } from '../devices/legacy/acpi-pm.js';
import { CmosRtc } from '../devices/legacy/cmos-rtc.js';
import { DebugConsole } from '../devices/legacy/debug-console.js';
import { DebugExit } from '../devices/legacy/debug-exit.js';
import { I8042 } from '../devices/legacy/i8042.js';
import { PostPort } from '../devices/legacy/post-port.js';
import { Pvpanic } from '../devices/legacy/pvpanic.js';
import { Uart16550, type UartOutput } from '../devices/legacy/uart16550.js';
import { VmmError } from '../errors.js';
import type { Kvm } from '../kvm/kvm.js';
import type { Vcpu } from '../kvm/vcpu.js';
import type { Vm } from '../kvm/vm.js';
import { InlineRunLoop } from '../loop/inline-run-loop.js';
import type { RunLoop } from '../loop/run-loop.js';
import { ThreadedRunLoop } from '../loop/threaded-run-loop.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import { guestCpuid } from './cpuid-policy.js';
import { IRQS, KVM_IDENTITY_MAP_GPA, KVM_TSS_GPA, MEMORY_LAYOUT, PORTS } from './layout.js';
import type { MachineConfig, MachineExit } from './machine.js';
import { ramRegions } from './memory-map.js';
import { setUpBootVcpu } from './vcpu-setup.js';

export interface BoardEvents {
  /** The guest's first serial port. */
  console: UartOutput;
  /** The serial port has room for input again. */
  onInputRoom: () => void;
  /** The guest ended itself. Called from inside an exit's handling; the run loop returns after it. */
  onEnd: (exit: MachineExit) => void;
  /** The run loop pauses for the event loop, or has served a batch of exits. */
  onTurn: () => void;
}

/** More would make one thread that serves all exits a bottleneck. */
const MAX_VCPUS = 32;

/** The devices every machine has, where the ACPI tables say they are. */
const ACPI_DEVICES: readonly AcpiDevice[] = [
  { type: 'serial', port: PORTS.COM1, irq: IRQS.COM1 },
  { type: 'rtc', port: PORTS.CMOS, irq: IRQS.RTC },
  { type: 'i8042' },
  { type: 'pvpanic', port: PORTS.PVPANIC },
];

/**
 * One power cycle of a machine under KVM: the VM, its memory with the kernel in it, the vCPUs and the devices on
 * their buses. Reset is a new board.
 */
export class Board implements Disposable {
  readonly loop: RunLoop;
  readonly ports = new Bus('port');
  readonly mmio = new Bus('mmio');
  readonly uart: Uart16550;
  readonly #vm: Vm;

  /** @throws VmmError as the boot loaders do, before there is a vCPU. */
  static async create(kvm: Kvm, config: MachineConfig, events: BoardEvents): Promise<Board> {
    const most = Math.min(MAX_VCPUS, kvm.checkExtension('MAX_VCPUS'));
    if (config.cpus > most) {
      throw new VmmError('INVALID_ARGUMENT', `cpus: ${config.cpus} is too many: this machine can have ${most} here`);
    }
    const [kernel, initrd] = await Promise.all([
      readImage(config.kernelPath, 'BAD_KERNEL'),
      config.initrdPath === undefined ? undefined : readImage(config.initrdPath, 'BAD_INITRD'),
    ]);
    const vm = kvm.createVm();
    try {
      // Memory first: after the irqchip every slot costs milliseconds.
      for (const region of ramRegions(config.memoryBytes)) vm.addMemory(region);
      const { rsdpGpa } = writeAcpiTables(vm.memory, MEMORY_LAYOUT, { cpus: config.cpus, devices: ACPI_DEVICES });
      writeMpTable(vm.memory, MEMORY_LAYOUT, { cpus: config.cpus });
      const boot = { kernel, cmdline: config.cmdline, ...(initrd && { initrd }) };
      const { entry } = await loadLinux(vm.memory, MEMORY_LAYOUT, boot, { rsdpGpa });

      vm.setIdentityMapAddress(KVM_IDENTITY_MAP_GPA);
      vm.setTssAddress(KVM_TSS_GPA);
      vm.createIrqchip();
      vm.createPit2({ dummySpeaker: true });
      const tscDeadlineTimer = kvm.checkExtension('TSC_DEADLINE_TIMER') > 0;
      const supported = kvm.supportedCpuid();
      for (let id = 0; id < config.cpus; id++) {
        const vcpu = vm.createVcpu(id);
        vcpu.setCpuid(guestCpuid(supported, { apicId: id, cpus: config.cpus, tscDeadlineTimer }));
      }
      // The others wait for INIT and SIPI, as on a PC.
      setUpBootVcpu(vm.vcpus[0], vm.memory, entry);
      return new Board(vm, config, events);
    } catch (error) {
      vm.close();
      throw error;
    }
  }

  private constructor(vm: Vm, config: MachineConfig, events: BoardEvents) {
    this.#vm = vm;
    const { vcpus } = vm;
    this.loop =
      vcpus.length === 1
        ? new InlineRunLoop(vcpus[0], this.ports, this.mmio, events.onTurn)
        : new ThreadedRunLoop(vcpus, this.ports, this.mmio, events.onTurn);
    const end = (exit: MachineExit) => {
      this.loop.stop();
      events.onEnd(exit);
    };
    const onReset = () => end({ reason: 'reset' });
    const { ports } = this;

    this.uart = new Uart16550({
      irq: vm.irqLine(IRQS.COM1),
      output: events.console,
      onInputRoom: events.onInputRoom,
    });
    ports.register(this.uart, PORTS.COM1, 8);

    const i8042 = new I8042({ irq: vm.irqLine(IRQS.KEYBOARD), onReset });
    ports.register(i8042, PORTS.I8042_DATA, 1);
    ports.register(i8042, PORTS.I8042_COMMAND, 1, PORTS.I8042_COMMAND - PORTS.I8042_DATA);

    const [low, high] = ramRegions(config.memoryBytes);
    const rtc = new CmosRtc({ memoryBelow4GiB: low.size, memoryAbove4GiB: high?.size ?? 0 });
    ports.register(rtc, PORTS.CMOS, 2);

    ports.register(new PostPort(), PORTS.POST, 1);
    ports.register(new DebugConsole({ output: events.console }), PORTS.DEBUG_CONSOLE, 1);
    const debugExit = new DebugExit({ onExit: (value) => end({ reason: 'shutdown', debugExit: value & 0xff }) });
    ports.register(debugExit, PORTS.DEBUG_EXIT, 4);
    ports.register(new Pvpanic({ onPanic: () => end({ reason: 'panic' }) }), PORTS.PVPANIC, 1);

    const acpiPm = new AcpiPm({
      sleepTypeS5: ACPI_POWER.SLEEP_TYPE_S5,
      resetValue: ACPI_POWER.RESET_VALUE,
      onShutdown: () => end({ reason: 'shutdown' }),
      onReset,
    });
    ports.register(acpiPm, ACPI_POWER.BASE_PORT, ACPI_POWER.PORTS);
  }

  get vcpus(): readonly Vcpu[] {
    return this.#vm.vcpus;
  }

  get memory(): GuestMemory {
    return this.#vm.memory;
  }

  [Symbol.dispose](): void {
    this.loop[Symbol.dispose]();
    this.#vm.close();
  }
}

async function readImage(path: string, code: 'BAD_KERNEL' | 'BAD_INITRD'): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new VmmError(code, `${path} cannot be read: ${(cause as Error).message}`, { cause });
  }
}
