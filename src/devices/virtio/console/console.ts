/**
 * The console device: virtio 1.2, 5.3. The guest learns about its ports through a pair of control queues; a driver that
 * does not know of these has port 0 alone. Control queues are offered with one port too: only by them does the device
 * hear that the port is open, and Linux throws away input that comes before.
 */
import type { AccessSize } from '../../../bus/device.js';
import { SavedState } from '../../../bus/saved-state.js';
import { VmmError } from '../../../errors.js';
import { VIRTIO_ID_CONSOLE } from '../../../virtio/defs.js';
import { type VirtioContext, type VirtioDevice, readConfigBytes } from '../../../virtio/device.js';
import { Turns } from '../../../virtio/queue/turns.js';
import {
  CONTROL_CONSOLE_PORT,
  CONTROL_DEVICE_ADD,
  CONTROL_DEVICE_READY,
  CONTROL_HEADER_BYTES,
  CONTROL_PORT_NAME,
  CONTROL_PORT_OPEN,
  CONTROL_PORT_READY,
  CONTROL_RESIZE,
  decodeControl,
  encodeControl,
} from './control.js';
import { ConsolePort, type ConsolePortConfig, type ConsolePortState } from './port.js';

const F_SIZE = 1n << 0n;
const F_MULTIPORT = 1n << 1n;
const F_EMERG_WRITE = 1n << 2n;

// 5.3.4 Device configuration layout
const CONFIG_COLUMNS = 0;
const CONFIG_ROWS = 2;
const CONFIG_MAX_PORTS = 4;
const CONFIG_EMERGENCY_WRITE = 8;
const CONFIG_BYTES = 12;

// 5.3.2 Virtqueues: port 0, the control queues, then the other ports
const CONTROL_RECEIVE = 2;
const CONTROL_TRANSMIT = 3;
const receiveQueueOf = (port: number) => (port === 0 ? 0 : 2 + 2 * port);
const QUEUE_SIZE = 128;
const MAX_PORTS = 31;
/** A guest that asks again and again and never fetches the answers would fill the host's memory. */
const MAX_PENDING_CONTROL = 1024;

export interface ConsoleSize {
  columns: number;
  rows: number;
}

export interface VirtioConsoleConfig {
  /** 1 to 31. A driver without multiport support uses the first alone. */
  ports: readonly ConsolePortConfig[];
  /** Of the terminal behind port 0. Default: 0 by 0, which means unknown. */
  size?: ConsoleSize;
}

export interface VirtioConsoleState {
  size: ConsoleSize;
  driverReady: boolean;
  ports: ConsolePortState[];
  /** Control messages that the driver had no buffers for. */
  pendingControl: Uint8Array[];
}

export class VirtioConsole implements VirtioDevice {
  readonly name = 'virtio-console';
  readonly type = VIRTIO_ID_CONSOLE;
  readonly features = F_SIZE | F_MULTIPORT | F_EMERG_WRITE;
  readonly queueSizes: readonly number[];
  readonly ports: readonly ConsolePort[];

  readonly #config = new Uint8Array(CONFIG_BYTES);
  #size: ConsoleSize;
  #context: VirtioContext | undefined;
  /** The driver said that it uses the control queues. */
  #driverReady = false;
  #pendingControl: Uint8Array[] = [];
  readonly #controlTurns = new Turns(() => this.#readControl());

  /** @throws VmmError code "INVALID_ARGUMENT" when there are no ports or too many, or the size has no 16 bits. */
  constructor(config: VirtioConsoleConfig) {
    const { ports, size } = config;
    if (ports.length < 1 || ports.length > MAX_PORTS) {
      throw new VmmError('INVALID_ARGUMENT', `a virtio console has 1 to ${MAX_PORTS} ports, not ${ports.length}`);
    }
    this.ports = ports.map((port, i) => new ConsolePort(port, port.console ?? i === 0));
    this.queueSizes = new Array<number>(2 * ports.length + 2).fill(QUEUE_SIZE);
    this.#size = size ? checkedSize(size) : { columns: 0, rows: 0 };
    const view = new DataView(this.#config.buffer);
    view.setUint32(CONFIG_MAX_PORTS, ports.length, true);
    this.#writeSize();
  }

  /** The terminal behind port 0 has another size now. @throws VmmError code "INVALID_ARGUMENT" when it has no 16 bits. */
  resize(size: ConsoleSize): void {
    this.#size = checkedSize(size);
    this.#writeSize();
    this.#context?.configChanged();
    if (this.#driverReady) this.#sendSize();
  }

  readConfig(offset: number, size: AccessSize): number {
    return readConfigBytes(this.#config, offset, size);
  }

  writeConfig(offset: number, _size: AccessSize, value: number): void {
    if (offset === CONFIG_EMERGENCY_WRITE) this.ports[0].emergencyWrite(value & 0xff);
  }

  activate(context: VirtioContext): void {
    this.#context = context;
    this.ports.forEach((port, i) => {
      const receive = receiveQueueOf(i);
      port.activate(context.queues[receive], context.queues[receive + 1], (reason) =>
        context.fail(`port ${i}: ${reason}`),
      );
    });
    // Without control queues the driver never says that the port is open; it is.
    if (this.#multiport()) return;
    this.ports[0].setGuestOpen(true);
    // Linux reads the size when it is told of a change, and not before.
    if (context.features & F_SIZE) context.configChanged();
  }

  queueNotify(index: number): void {
    if (this.#multiport() && index === CONTROL_RECEIVE) return this.#flushControl();
    if (this.#multiport() && index === CONTROL_TRANSMIT) return this.#controlTurns.take();
    if (!this.#multiport() && index > 1) return;
    const port = index < 2 ? this.ports[0] : this.ports[(index >> 1) - 1];
    if (index & 1) port.onTransmitNotify();
    else port.onReceiveNotify();
  }

  reset(): void {
    this.#context = undefined;
    this.#driverReady = false;
    this.#pendingControl = [];
    this.#controlTurns.cancel();
    for (const port of this.ports) port.reset();
  }

  save(): VirtioConsoleState {
    return {
      size: { ...this.#size },
      driverReady: this.#driverReady,
      ports: this.ports.map((port) => port.save()),
      pendingControl: this.#pendingControl.map((message) => message.slice()),
    };
  }

  restore(state: unknown): void {
    const saved = new SavedState(this.name, state);
    const { size, pendingControl } = state as VirtioConsoleState;
    const savedSize = new SavedState(`${this.name}: size`, size);
    const checked = { columns: savedSize.integer('columns', 0xffff), rows: savedSize.integer('rows', 0xffff) };
    const messages = saved.list('pendingControl', Math.min(pendingControl?.length ?? 0, MAX_PENDING_CONTROL));
    const pending = messages.map((_message, i) =>
      new SavedState(`${this.name}: pendingControl`, messages).bytes(String(i), CONTROL_HEADER_BYTES, 0xffff),
    );
    const driverReady = saved.boolean('driverReady');
    const ports = saved.list('ports', this.ports.length);
    this.ports.forEach((port, i) => port.restore(ports[i]));
    this.#size = checked;
    this.#writeSize();
    this.#driverReady = driverReady;
    this.#pendingControl = pending;
  }

  #multiport(): boolean {
    return ((this.#context?.features ?? 0n) & F_MULTIPORT) !== 0n;
  }

  #readControl(): boolean {
    const queue = this.#context?.queues[CONTROL_TRANSMIT];
    if (!queue) return false;
    return queue.drain((chain) => {
      const bytes = new Uint8Array(CONTROL_HEADER_BYTES);
      const complete = chain.read(0, bytes) === CONTROL_HEADER_BYTES;
      queue.push(chain, 0);
      if (complete) this.#onControl(bytes);
    });
  }

  #onControl(bytes: Uint8Array): void {
    const { port: id, event, value } = decodeControl(bytes);
    if (event === CONTROL_DEVICE_READY) {
      this.#driverReady = value === 1;
      if (this.#driverReady)
        this.ports.forEach((_port, i) => this.#sendControl(encodeControl(i, CONTROL_DEVICE_ADD, 1)));
      return;
    }
    const port = id < this.ports.length ? this.ports[id] : undefined;
    if (!port) return;
    if (event === CONTROL_PORT_OPEN) port.setGuestOpen(value === 1);
    else if (event === CONTROL_PORT_READY && value === 1) this.#introduce(id, port);
  }

  #introduce(id: number, port: ConsolePort): void {
    if (port.isConsole) this.#sendControl(encodeControl(id, CONTROL_CONSOLE_PORT, 1));
    if (port.isConsole && id === 0) this.#sendSize();
    if (port.name !== undefined) {
      this.#sendControl(encodeControl(id, CONTROL_PORT_NAME, 1, new TextEncoder().encode(port.name)));
    }
    this.#sendControl(encodeControl(id, CONTROL_PORT_OPEN, 1));
  }

  /** In the order of the specification, which Linux keeps since 2025; before, it took the first number for the rows. */
  #sendSize(): void {
    const payload = new Uint8Array(4);
    const view = new DataView(payload.buffer);
    view.setUint16(0, this.#size.columns, true);
    view.setUint16(2, this.#size.rows, true);
    this.#sendControl(encodeControl(0, CONTROL_RESIZE, 0, payload));
  }

  #sendControl(message: Uint8Array): void {
    if (this.#pendingControl.length >= MAX_PENDING_CONTROL) {
      this.#context?.fail('control messages are not fetched');
      return;
    }
    this.#pendingControl.push(message);
    this.#flushControl();
  }

  #flushControl(): void {
    const queue = this.#context?.queues[CONTROL_RECEIVE];
    if (!queue) return;
    while (this.#pendingControl.length > 0) {
      const chain = queue.pop();
      if (!chain) {
        if (queue.enableNotifications()) continue;
        break;
      }
      const message = this.#pendingControl.shift()!;
      queue.push(chain, chain.write(0, message));
    }
    queue.signal();
  }

  #writeSize(): void {
    const view = new DataView(this.#config.buffer);
    view.setUint16(CONFIG_COLUMNS, this.#size.columns, true);
    view.setUint16(CONFIG_ROWS, this.#size.rows, true);
  }
}

function checkedSize({ columns, rows }: ConsoleSize): ConsoleSize {
  for (const value of [columns, rows]) {
    if (!(Number.isInteger(value) && value >= 0 && value <= 0xffff)) {
      throw new VmmError('INVALID_ARGUMENT', `a console of ${columns} by ${rows} characters; give 0 to 65535 each`);
    }
  }
  return { columns, rows };
}
