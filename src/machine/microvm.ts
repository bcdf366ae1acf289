import { EventEmitter } from 'node:events';
import type { Duplex } from 'node:stream';
import type { QemuDisk } from '../backends/qemu/storage-daemon.js';
import type { VirtiofsShare } from '../backends/qemu/virtiofsd.js';
import { VmmError } from '../errors.js';
import { chooseAccelerator } from './accelerator.js';
import type { Balloon } from './balloon.js';
import { KvmMachine } from './kvm-machine.js';
import { isQemuMachine } from './machine-type.js';
import type { Machine, MachineEvents, MachineExit, MachineState, MachineStats } from './machine.js';
import { parseOptions, type MicroVMOptions } from './options.js';
import type { Vsock } from './vsock.js';

/**
 * A virtual machine that boots a Linux kernel: under KVM by this package, or in a QEMU process where KVM is of no use. With
 * `machine: 'pc'` or `'q35'` it is always QEMU's, and may boot a disk by firmware.
 *
 * ```ts
 * await using vm = await MicroVM.create({ kernel: 'vmlinuz', initrd: 'initrd.img' });
 * vm.console.pipe(process.stdout);
 * await vm.start();
 * const { reason } = await vm.exited;
 * ```
 *
 * It emits `deviceError` when what stands behind a device broke down (a passt that died): the guest goes on without.
 *
 * It holds its resources until `close()`, also after the guest has ended; `await using` closes it. After `close()` every
 * other call throws code "CLOSED".
 */
export class MicroVM extends EventEmitter<MachineEvents> implements Omit<Machine, 'events'> {
  /** One line on why this accelerator was chosen. */
  readonly accelReason: string;
  readonly #machine: Machine;

  private constructor(machine: Machine, accelReason: string) {
    super();
    this.#machine = machine;
    machine.events.on('deviceError', (error) => this.emit('deviceError', error));
    this.accelReason = accelReason;
  }

  /**
   * Makes the machine and loads its kernel; nothing runs yet.
   *
   * @throws VmmError code "INVALID_ARGUMENT" naming the option that is wrong; "BAD_KERNEL", "BAD_INITRD", "BAD_CMDLINE",
   *   "OUT_OF_GUEST_MEMORY"; "IMAGE_NOT_FOUND" for firmware; "ACCEL_UNAVAILABLE" when the accelerator that was asked for is not there;
   *   "QEMU_UNAVAILABLE" when QEMU is needed and not installed.
   */
  static async create(options: MicroVMOptions): Promise<MicroVM> {
    const { config, accel: request } = parseOptions(options);
    const { accel, reason } = chooseAccelerator(request, config.arch, config.machine);
    const machine =
      accel === 'kvm' && !isQemuMachine(config.machine)
        ? await KvmMachine.create(config)
        : await (await import('./qemu-machine.js')).QemuMachine.create(config, { accel });
    return new MicroVM(machine, reason);
  }

  /** What runs the guest. */
  get accel(): 'kvm' | 'tcg' {
    return this.#machine.accel;
  }

  get state(): MachineState {
    return this.#machine.state;
  }

  /**
   * The guest's first serial port: write for input, read for output. It ends when the guest does. A slow reader slows
   * the guest's port down; without a reader the oldest output is dropped.
   */
  get console(): Duplex {
    return this.#machine.console;
  }

  /**
   * By index of the option `drives`: what can be done with a disk of `backend: 'qemu'` while the guest uses it, such as a
   * snapshot or another size. Undefined for other disks.
   */
  get drives(): readonly (QemuDisk | undefined)[] {
    return this.#machine.drives;
  }

  /**
   * By index of the option `shares`: the process of a share of `backend: 'virtiofsd'`, whose event `died` tells of its end,
   * and which `restart()` starts anew. Undefined for other shares.
   */
  get shares(): readonly (VirtiofsShare | undefined)[] {
    return this.#machine.shares;
  }

  /**
   * The program's end of a console port that the option `consolePorts` names. In a Linux guest it is a character device,
   * whose name is in /sys/class/virtio-ports/vport0p1/name; udev makes a link of it in /dev/virtio-ports. What is written waits
   * until a program in the guest opens the port; a guest that writes more than is read has to wait. It ends when the
   * guest does.
   *
   * @throws VmmError code "INVALID_ARGUMENT" for another name.
   */
  port(name: string): Duplex {
    return this.#machine.port(name);
  }

  /**
   * Ethernet frames, without their FCS, of a network card of type `port`: read what the guest sends, write what it shall
   * get, a Uint8Array a chunk. `a.net(0).pipe(b.net(0)).pipe(a.net(0))` is a cable between two guests. Backpressure works
   * both ways; destroying the stream pulls the plug.
   *
   * @param index Its place in the option `net`.
   * @throws VmmError code "INVALID_ARGUMENT" for the index of another card, or of none.
   */
  net(index: number): Duplex {
    return this.#machine.net(index);
  }

  /**
   * Tells the guest the size of the terminal behind its virtio console, in characters; also before `start()`.
   *
   * @throws VmmError code "INVALID_ARGUMENT" for what is no size, "INVALID_STATE" where the console is a serial port.
   */
  resizeConsole(size: { columns: number; rows: number }): Promise<void> {
    return this.#machine.resizeConsole(size);
  }

  /** The guest's sockets. @throws VmmError code "INVALID_STATE" when the machine was made without the option `vsock`. */
  get vsock(): Vsock {
    const { vsock } = this.#machine;
    if (vsock) return vsock;
    throw new VmmError(
      'INVALID_STATE',
      'this machine has no vsock: give MicroVM.create() the option vsock: { cid: 3 }',
    );
  }

  /** Resolves once, when the guest has ended; rejects only when the machine itself failed. */
  get exited(): Promise<MachineExit> {
    return this.#machine.exited;
  }

  /** Runs the guest. @throws VmmError code "INVALID_STATE" when it was started before. */
  start(): Promise<void> {
    return this.#machine.start();
  }

  /** Stops the vCPUs where they are. @returns when none runs. */
  pause(): Promise<void> {
    return this.#machine.pause();
  }

  resume(): Promise<void> {
    return this.#machine.resume();
  }

  /** Starts the guest over, with memory and devices as new. */
  reset(): Promise<void> {
    return this.#machine.reset();
  }

  /** Presses the power button: a guest that listens to it shuts down in order. */
  powerButton(): Promise<void> {
    return this.#machine.powerButton();
  }

  /** Ends the guest at once; `exited` resolves with 'stopped' unless it had ended. Idempotent. */
  stop(): Promise<void> {
    return this.#machine.stop();
  }

  /** The memory balloon, of a machine made with `balloon: true`: its target, and how the guest's memory is used. */
  get balloon(): Balloon {
    return this.#machine.balloon;
  }

  stats(): Promise<MachineStats> {
    return this.#machine.stats();
  }

  /**
   * Ends the guest and gives everything back. One worker thread stays for a minute, for the next machine; it does not keep
   * the process alive. Idempotent.
   */
  close(): Promise<void> {
    return this.#machine.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#machine.close();
  }
}
