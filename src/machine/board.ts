import { ACPI_POWER, writeAcpiTables, type AcpiDevice } from '../boot/acpi.js';
import type { EntryState } from '../boot/entry.js';
import { bootProtocol, loadKernel } from '../boot/kernel.js';
import type { LinuxBoot } from '../boot/linux.js';
import { writeMpTable } from '../boot/mptable.js';
import { writeRestartVector } from '../boot/restart-vector.js';
import { Bus } from '../bus/bus.js';
import type { BusDevice } from '../bus/device.js';
import { AcpiPm } from '../devices/legacy/acpi-pm.js';
import { CmosRtc } from '../devices/legacy/cmos-rtc.js';
import { DebugConsole } from '../devices/legacy/debug-console.js';
import { DebugExit } from '../devices/legacy/debug-exit.js';
import { FW_CFG_PORTS, FwCfg } from '../devices/legacy/fw-cfg.js';
import { I8042 } from '../devices/legacy/i8042.js';
import { PostPort } from '../devices/legacy/post-port.js';
import { Pvpanic } from '../devices/legacy/pvpanic.js';
import { TEST_MEMORY_BYTES, TEST_PORTS, TestIrqs, TestMemory, TestPorts } from '../devices/legacy/test-device.js';
import { Uart16550, type UartOutput } from '../devices/legacy/uart16550.js';
import type { ConsoleSize } from '../devices/virtio/console/console.js';
import type { VirtioBalloon } from '../devices/virtio/balloon/balloon.js';
import type { PortOutput } from '../devices/virtio/console/port.js';
import { VmmError } from '../errors.js';
import type { IrqLine } from '../irq/irq-line.js';
import type { Kvm } from '../kvm/kvm.js';
import type { Vcpu } from '../kvm/vcpu.js';
import type { Vm } from '../kvm/vm.js';
import { InlineRunLoop } from '../loop/inline-run-loop.js';
import type { RunLoop } from '../loop/run-loop.js';
import { ThreadedRunLoop } from '../loop/threaded-run-loop.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import { noBalloon } from './balloon.js';
import type { VirtioDevice } from '../virtio/device.js';
import type { CpuHost } from './cpu-host.js';
import { guestCpuid, guestMsrs } from './cpuid-policy.js';
import { VirtioDevices, type NamedDevice } from './devices.js';
import { openRemoteDevices, type RemoteDevice } from './remote-devices.js';
import {
  IRQS,
  KVM_IDENTITY_MAP_GPA,
  KVM_TSS_GPA,
  MAX_VCPUS,
  MEMORY_LAYOUT,
  PORTS,
  TEST_MEMORY_GPA,
  VIRTIO_MMIO,
} from './layout.js';
import { foreignCmdline } from './foreign.js';
import { ImageFile } from './image-file.js';
import type { DeviceStats, MachineConfig, MachineExit, MachineStats } from './machine.js';
import { memoryControl, type MemoryControl } from './memory-control.js';
import { hasSharedMemory, ramRegions } from './memory-map.js';
import type { NamedPort } from './named-port.js';
import type { NetPort } from './net-port.js';
import type { StreamHub } from './stream-hub.js';
import { RegisterPages } from './register-pages.js';
import { setUpBootVcpu } from './vcpu-setup.js';
import { makeUserDevice, type UserDevice } from './user-devices.js';
import { VirtioHost } from './virtio-host.js';
import type { VsockPorts } from './vsock-ports.js';

export interface BoardEvents {
  /** The thread may stand still while the guest runs. */
  hasOwnThread: boolean;
  /** Takes the console's output, a byte or bytes. */
  console: UartOutput & { output: PortOutput };
  /** The console has room for input again. */
  onInputRoom: () => void;
  /** Streams of devices to the program's thread. They outlive the board: a reset is not their end. */
  streams: StreamHub;
  ports: readonly NamedPort[];
  netPorts: ReadonlyMap<number, NetPort>;
  userDevices: readonly UserDevice[];
  consoleSize: ConsoleSize | undefined;
  /** Where the guest's sockets meet the program's thread. Outlives the board, too. */
  vsock: VsockPorts;
  onDeviceError: (id: string, error: VmmError) => void;
  /** The guest ended itself. Called from inside an exit's handling; the run loop returns after it. */
  onEnd: (exit: MachineExit) => void;
  /** The run loop pauses for the event loop, or has served a batch of exits. */
  onTurn: () => void;
}

/** The devices every machine has, where the ACPI tables say they are. */
const ACPI_DEVICES: readonly AcpiDevice[] = [
  { type: 'serial', port: PORTS.COM1, irq: IRQS.COM1 },
  { type: 'rtc', port: PORTS.CMOS, irq: IRQS.RTC },
  { type: 'i8042' },
  { type: 'pvpanic', port: PORTS.PVPANIC },
  { type: 'power-button', gsi: IRQS.POWER_BUTTON },
];

/**
 * One power cycle of a machine under KVM: the VM, its memory with the kernel in it, the vCPUs and the devices on
 * their buses. Reset is a new board.
 */
export class Board {
  readonly ports = new Bus('port');
  readonly mmio = new Bus('mmio');
  readonly #vm: Vm;
  readonly #uart: Uart16550;
  readonly #powerButton: IrqLine;
  readonly #registerPages: RegisterPages | undefined;
  readonly #end: (exit: MachineExit) => void;
  /** What broke down, by the device's id. */
  readonly #deviceErrors = new Map<string, VmmError>();
  readonly #onDeviceError: (id: string, error: VmmError) => void;
  /** Devices of the machine's user: those on a bus, and the others. */
  readonly #userDevices: BusDevice[] = [];
  readonly #userVirtio: NamedDevice[] = [];
  /** PCI devices in QEMU processes. */
  readonly #remotes: RemoteDevice[] = [];
  #virtio: VirtioDevices | undefined;
  #virtioHost: VirtioHost | undefined;
  #loop: RunLoop | undefined;
  #closing: Promise<void> | undefined;

  /** @throws VmmError as the backends and the boot loaders do, before there is a vCPU. */
  static async create(kvm: Kvm, host: CpuHost, config: MachineConfig, events: BoardEvents): Promise<Board> {
    const most = Math.min(MAX_VCPUS.kvm, kvm.checkExtension('MAX_VCPUS'));
    if (config.cpus > most) {
      const message = `cpus: ${config.cpus} is too many under KVM, which allows ${most} here; accel: "tcg" goes up to ${MAX_VCPUS.tcg}`;
      throw new VmmError('INVALID_ARGUMENT', message);
    }
    using kernel = await ImageFile.read(config.kernelPath!, 'BAD_KERNEL'); // every microvm has one
    using initrd = config.initrdPath === undefined ? undefined : await ImageFile.read(config.initrdPath, 'BAD_INITRD');
    const vm = kvm.createVm();
    let board: Board;
    try {
      board = new Board(vm, config, events);
    } catch (error) {
      vm.close();
      throw error;
    }
    try {
      await board.#addVirtio(config, events);
      const cmdline = bootProtocol(kernel.bytes) === 'multiboot' ? foreignCmdline(config) : config.cmdline;
      const boot = { kernel: kernel.bytes, cmdline, ...(initrd && { initrd: initrd.bytes }) };
      const entry = await board.#load(boot, config.cpus);
      board.#addVcpus(host, entry, config, events);
      return board;
    } catch (error) {
      await board.close();
      throw error;
    }
  }

  private constructor(vm: Vm, config: MachineConfig, events: BoardEvents) {
    this.#vm = vm;
    // Memory first: after the irqchip every slot costs milliseconds.
    const shared = hasSharedMemory(config);
    for (const region of ramRegions(config.memoryBytes)) vm.addMemory({ ...region, shared });
    if (config.virtioTransport === 'mmio') this.#registerPages = RegisterPages.add(vm);
    vm.setIdentityMapAddress(KVM_IDENTITY_MAP_GPA);
    vm.setTssAddress(KVM_TSS_GPA);
    vm.createIrqchip();
    vm.createPit2({ dummySpeaker: true });

    this.#end = (exit) => {
      this.#loop?.stop();
      events.onEnd(exit);
    };
    this.#onDeviceError = (id, error) => {
      this.#deviceErrors.set(id, error);
      events.onDeviceError(id, error);
    };
    const onReset = () => this.#end({ reason: 'reset' });
    const { ports } = this;

    this.#uart = new Uart16550({
      irq: vm.irqLine(IRQS.COM1),
      output: events.console,
      onInputRoom: events.onInputRoom,
    });
    ports.register(this.#uart, PORTS.COM1, 8);

    const i8042 = new I8042({ irq: vm.irqLine(IRQS.KEYBOARD), onReset });
    ports.register(i8042, PORTS.I8042_DATA, 1);
    ports.register(i8042, PORTS.I8042_COMMAND, 1, PORTS.I8042_COMMAND - PORTS.I8042_DATA);

    const [low, high] = ramRegions(config.memoryBytes);
    const rtc = new CmosRtc({ memoryBelow4GiB: low.size, memoryAbove4GiB: high?.size ?? 0 });
    ports.register(rtc, PORTS.CMOS, 2);

    if (config.testdev) this.#addTestDevice(config, events);
    ports.register(new PostPort(), PORTS.POST, 1);
    ports.register(new DebugConsole({ output: events.console }), PORTS.DEBUG_CONSOLE, 1);
    const debugExit = new DebugExit({ onExit: (value) => this.#end({ reason: 'shutdown', debugExit: value & 0xff }) });
    ports.register(debugExit, PORTS.DEBUG_EXIT, 4);
    ports.register(new Pvpanic({ onPanic: () => this.#end({ reason: 'panic' }) }), PORTS.PVPANIC, 1);

    const acpiPm = new AcpiPm({
      sleepTypeS5: ACPI_POWER.SLEEP_TYPE_S5,
      resetValue: ACPI_POWER.RESET_VALUE,
      onShutdown: () => this.#end({ reason: 'shutdown' }),
      onReset,
    });
    ports.register(acpiPm, ACPI_POWER.BASE_PORT, ACPI_POWER.PORTS);
    this.#powerButton = vm.irqLine(IRQS.POWER_BUTTON);
    for (const device of events.userDevices) this.#addUserDevice(device);
  }

  get loop(): RunLoop {
    return this.#loop!;
  }

  get vcpus(): readonly Vcpu[] {
    return this.#vm.vcpus;
  }

  get memory(): GuestMemory {
    return this.#vm.memory;
  }

  get memoryControl(): MemoryControl {
    return memoryControl(this.#vm.memory);
  }

  /** @throws VmmError code "INVALID_STATE" where there is none. */
  get balloon(): VirtioBalloon {
    if (!this.#virtio?.balloon) throw noBalloon();
    return this.#virtio.balloon;
  }

  /** Presses the power button: an edge on its interrupt line. */
  pressPowerButton(): void {
    this.#powerButton.set(true);
    this.#powerButton.set(false);
  }

  /** Input for the guest's console. @returns How many bytes it took; after fewer than all, `onInputRoom` follows. */
  receive(bytes: Uint8Array): number {
    return this.#virtio?.console?.ports[0].receive(bytes) ?? this.#uart.receive(bytes);
  }

  /** The console's output has room again. */
  resumeOutput(): void {
    this.#virtio?.console?.ports[0].resumeOutput();
    this.#uart.resumeOutput();
  }

  /** @throws VmmError code "INVALID_ARGUMENT", "INVALID_STATE" where the console is a serial port. */
  resizeConsole(size: ConsoleSize): void {
    const device = this.#virtio?.console;
    if (!device) {
      throw new VmmError('INVALID_STATE', 'a serial console has no size: make the machine with console: "virtio"');
    }
    device.resize(size);
  }

  stats(): Omit<MachineStats, 'memoryBytes'> {
    const { ports, mmio } = this;
    const unmapped = ports.unmappedAccesses + mmio.unmappedAccesses;
    return {
      exits: this.loop.exits(),
      accesses: { ...ports.accesses(), ...mmio.accesses(), ...(unmapped > 0 && { unmapped }) },
      devices: this.#deviceStats(),
      kicks: this.#virtioHost?.kicks ?? 0,
      interrupts: this.#virtioHost?.interrupts ?? 0,
      consoleDroppedBytes: this.#uart.droppedOutputBytes + (this.#virtio?.console?.ports[0].droppedOutputBytes ?? 0),
    };
  }

  #deviceStats(): Record<string, DeviceStats> {
    const { list = [] } = this.#virtio ?? {};
    const entries = list.map(({ id, device }) => {
      const { name, counters } = device;
      const error = this.#deviceErrors.get(id)?.message;
      const stats: DeviceStats = {
        name,
        ...this.#virtioHost!.failuresOf(device),
        ...(error !== undefined && { error }),
        ...(counters && { counters: counters as Record<string, unknown> }),
      };
      return [id, stats] as const;
    });
    const remotes = this.#remotes.map(({ id, device }) => {
      const error = this.#deviceErrors.get(id)?.message;
      const { name, exchanges } = device;
      const stats: DeviceStats = { name, failures: 0, ...(error !== undefined && { error }), counters: { exchanges } };
      return [id, stats] as const;
    });
    return Object.fromEntries([...entries, ...remotes]);
  }

  /** Stops the vCPUs, then the devices, and gives everything back, whatever throws meanwhile. Idempotent. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close());
  }

  async #close(): Promise<void> {
    try {
      this.#loop?.[Symbol.dispose]();
      for (const device of this.#userDevices) device.reset();
      // Guest memory must stay until no disk request writes to it any more.
      const results = await Promise.allSettled([
        (async () => {
          await this.#virtioHost?.close();
          await this.#virtio?.close();
        })(),
        ...this.#remotes.map(({ device }) => device.close()),
      ]);
      for (const result of results) if (result.status === 'rejected') throw result.reason;
    } finally {
      this.#vm.close();
    }
  }

  #addTestDevice({ memoryBytes, cpus }: MachineConfig, events: BoardEvents): void {
    const { ports } = this;
    const vm = this.#vm;
    ports.register(
      new TestPorts({ onDropPage: (gpa) => this.memoryControl.dropPage(gpa) }),
      PORTS.TEST_DATA,
      TEST_PORTS,
    );
    ports.register(new DebugConsole({ output: events.console }), PORTS.TEST_OUTPUT, 1);
    const lines = Array.from({ length: IRQS.COUNT }, (_, gsi) => vm.irqLine(gsi));
    ports.register(new TestIrqs(lines), PORTS.TEST_IRQS, lines.length);
    this.mmio.register(new TestMemory(), TEST_MEMORY_GPA, TEST_MEMORY_BYTES);
    ports.register(new FwCfg({ memoryBytes, cpus }), PORTS.FW_CFG, FW_CFG_PORTS);
  }

  #addUserDevice(userDevice: UserDevice): void {
    const { id, place } = userDevice.config;
    const device = makeUserDevice(userDevice, {
      irqLine: (gsi) => this.#vm.irqLine(gsi),
      onError: this.#onDeviceError,
    });
    if (place.space === 'virtio') {
      this.#userVirtio.push({ id, device: device as VirtioDevice });
      return;
    }
    const bus = place.space === 'port' ? this.ports : this.mmio;
    bus.register(device as BusDevice, place.base, place.length);
    this.#userDevices.push(device as BusDevice);
  }

  async #addVirtio(config: MachineConfig, events: BoardEvents): Promise<void> {
    await openRemoteDevices(config.devices, this.#vm.memory, this.#remotes, this.#onDeviceError);
    this.#virtio = await VirtioDevices.open(config, {
      ...events,
      discard: (gpa, length) => this.memoryControl.discard(gpa, length),
      userDevices: this.#userVirtio,
      onDeviceError: this.#onDeviceError,
      onDeviceRecovery: (id) => this.#deviceErrors.delete(id),
      console: { output: events.console.output, onInputRoom: events.onInputRoom },
    });
    const devices = this.#virtio.list.map(({ device }) => device);
    this.#virtioHost = new VirtioHost(devices, {
      transport: config.virtioTransport,
      mmioGsis: VIRTIO_MMIO.GSIS.filter(
        (gsi) => !config.devices.some((device) => device.type === 'module' && device.irq === gsi),
      ),
      registerPages: this.#registerPages,
      remotes: this.#remotes.map(({ device }) => device),
      vm: this.#vm,
      ports: this.ports,
      mmio: this.mmio,
      onReset: () => this.#end({ reason: 'reset' }),
    });
  }

  async #load(boot: LinuxBoot, cpus: number): Promise<EntryState> {
    const { memory } = this.#vm;
    const { acpi, reserved } = this.#virtioHost!;
    const { rsdpGpa } = writeAcpiTables(memory, MEMORY_LAYOUT, {
      cpus,
      devices: [...ACPI_DEVICES, ...acpi.devices],
      pci: acpi.pci,
    });
    writeMpTable(memory, MEMORY_LAYOUT, { cpus });
    writeRestartVector(memory);
    return (await loadKernel(memory, MEMORY_LAYOUT, boot, { rsdpGpa, reserved })).entry;
  }

  #addVcpus(
    host: CpuHost,
    entry: EntryState,
    { cpus, threadsPerCore, cpuTemplate }: MachineConfig,
    { onTurn, hasOwnThread }: BoardEvents,
  ): void {
    const vm = this.#vm;
    for (let apicId = 0; apicId < cpus; apicId++) {
      const vcpu = vm.createVcpu(apicId);
      vcpu.setCpuid(guestCpuid(host, { apicId, cpus, threadsPerCore }, cpuTemplate));
      vcpu.setMsrs(guestMsrs(host));
    }
    // The others wait for INIT and SIPI, as on a PC.
    setUpBootVcpu(vm.vcpus[0], vm.memory, entry);
    // With virtio devices the guest goes on while this thread moves their data: a kick is no exit then.
    const inline = hasOwnThread && cpus === 1 && this.#virtio!.list.length === 0;
    this.#loop = inline
      ? new InlineRunLoop(vm.vcpus[0], this.ports, this.mmio, onTurn)
      : new ThreadedRunLoop(vm.vcpus, this.ports, this.mmio, onTurn);
  }
}
