import { VmmError } from '../../errors.js';
import { addon, native, type NativeUnixSocket } from '../../native/addon.js';
import { VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1 } from '../../virtio/defs.js';
import type { VirtioDevice } from '../../virtio/device.js';
import { closeFds, MessageSocket, type Message } from './message-socket.js';
import {
  BACKEND_REQUEST,
  F_PROTOCOL_FEATURES,
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  PROTOCOL_F,
  REQUEST,
  VRING_INDEX_MASK,
  VRING_NO_FD,
  type MessageType,
} from './protocol.js';
import { DeviceSession } from './session.js';
import type { Vring } from './vring.js';

/** Messages that may wait while one is worked on: a frontend waits for most answers before it goes on. */
const MAX_WAITING = 256;
const PROTOCOL_FEATURES = PROTOCOL_F.MQ | PROTOCOL_F.REPLY_ACK | PROTOCOL_F.BACKEND_REQ | PROTOCOL_F.CONFIG;
const VIRTIO_FEATURES = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX;

/** One request in hand. What is left in `fds` when it has been handled is closed. */
interface Request {
  payload: Uint8Array;
  fds: number[];
}

type Handler = (request: Request) => Uint8Array | void | Promise<Uint8Array | void>;

export interface BackendEvents {
  /** The connection is over, the device is reset, and nothing of the frontend's memory is in use any more. */
  onEnd(error: VmmError): void;
  /** The guest's driver broke a rule: the device does nothing until it is set up anew. */
  onDriverFailure(reason: string): void;
}

/**
 * One frontend's connection to a virtio device of this process: the other end of {@link VhostUserFrontend}. Frontends here
 * are other programs, QEMU for one: whatever breaks the protocol ends the connection, and nothing else.
 */
export class VhostUserBackend {
  readonly #device: VirtioDevice;
  readonly #messages: MessageSocket;
  readonly #session: DeviceSession;
  readonly #offered: bigint;
  readonly #events: BackendEvents;
  #protocolFeatures = 0n;
  #channel: MessageSocket | undefined;
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #ended = false;
  readonly #handlers = new Map<number, Handler>();

  /**
   * @param socket Owned from now on.
   * @param device Serves one frontend at a time.
   */
  constructor(socket: NativeUnixSocket, device: VirtioDevice, events: BackendEvents) {
    this.#device = device;
    this.#events = events;
    this.#offered = device.features | VIRTIO_FEATURES | F_PROTOCOL_FEATURES;
    this.#session = new DeviceSession(device, {
      onConfigChanged: () => this.#tellConfigChanged(),
      onSettle: () => this.#inTurn(() => this.#session.start()),
      onFailure: (reason) => events.onDriverFailure(reason),
    });
    this.#defineHandlers();
    this.#messages = new MessageSocket(
      socket,
      (message) => this.#receive(message),
      (error) => this.#end(error),
    );
  }

  /** Ends the connection; `onEnd` follows when all is over. Idempotent. */
  close(): void {
    this.#end(new VmmError('CLOSED', 'the device is served no more'));
  }

  #receive({ request, flags, payload, fds }: Message): void {
    if (this.#waiting >= MAX_WAITING) throw broken('it does not wait for answers');
    this.#waiting++;
    const inHand: Request = { payload: payload.slice(), fds: fds.splice(0) };
    this.#inTurn(async () => {
      this.#waiting--;
      const handler = this.#handlers.get(request);
      try {
        if (!handler) throw broken(`it sent request ${request}, which nobody offered`);
        const answer = await handler(inHand);
        if (this.#ended) return;
        if (answer) this.#messages.send({ request, flags: FLAG_REPLY }, answer);
        else if (flags & FLAG_NEED_REPLY && this.#protocolFeatures & PROTOCOL_F.REPLY_ACK) {
          this.#messages.send({ request, flags: FLAG_REPLY }, u64.encode(0n));
        }
      } finally {
        closeFds(inHand.fds);
      }
    }, inHand.fds);
  }

  /** Requests are handled one after the other; an exception ends the connection. @param fds Closed when it is over already. */
  #inTurn(action: () => void | Promise<void>, fds: number[] = []): void {
    this.#last = this.#last.then(async () => {
      if (this.#ended) return closeFds(fds);
      try {
        await action();
      } catch (error) {
        this.#end(error as VmmError);
      }
    });
  }

  #end(error: VmmError): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#messages.close();
    this.#channel?.close();
    void this.#last.then(() => this.#session.close()).then(() => this.#events.onEnd(error));
  }

  #tellConfigChanged(): void {
    try {
      this.#channel?.send({ request: BACKEND_REQUEST.configChange.id, flags: 0 }, new Uint8Array(0));
    } catch {
      // A frontend that does not listen there will hear it when it asks.
    }
  }

  #defineHandlers(): void {
    const session = this.#session;
    const on = <Q, A>(
      { id, name, query }: MessageType<Q, A>,
      handle: (value: Q, request: Request) => ReturnType<Handler>,
    ) =>
      this.#handlers.set(id, (request) => {
        const value = query.decode(request.payload);
        if (value === undefined) throw broken(`its ${name} of ${request.payload.length} bytes makes no sense`);
        return handle(value, request);
      });
    const ask = <A>({ id, answer }: MessageType<void, A>, value: () => A) =>
      this.#handlers.set(id, () => answer!.encode(value()));

    ask(REQUEST.getFeatures, () => this.#offered);
    ask(REQUEST.getProtocolFeatures, () => PROTOCOL_FEATURES);
    ask(REQUEST.getQueueNum, () => BigInt(session.rings.length));
    this.#handlers.set(REQUEST.setOwner.id, () => {});
    on(REQUEST.setProtocolFeatures, (features) => {
      if (features & ~PROTOCOL_FEATURES) throw broken('it chose protocol features that nobody offered');
      this.#protocolFeatures = features;
    });
    on(REQUEST.setFeatures, async (features) => {
      if (features & ~this.#offered) throw broken('it chose features that the device does not have');
      if (!(features & VIRTIO_F_VERSION_1)) throw broken("the guest's driver is one for virtio before version 1");
      await session.setFeatures(features & ~F_PROTOCOL_FEATURES);
      // Without protocol features there is no SET_VRING_ENABLE.
      if (!(features & F_PROTOCOL_FEATURES)) for (const ring of session.rings) ring.enabled = true;
    });
    on(REQUEST.setMemTable, (table, { fds }) => session.setMemory(table, fds));

    on(REQUEST.setVringNum, ({ index, num }) => this.#change(index, (ring) => void (ring.size = num)));
    on(REQUEST.setVringAddr, (address) => this.#change(address.index, (ring) => void (ring.address = address)));
    on(REQUEST.setVringBase, ({ index, num }) => {
      if (num > 0xffff) throw broken(`ring ${index} cannot begin at ${num}`);
      return this.#change(index, (ring) => void (ring.base = num));
    });
    on(REQUEST.getVringBase, async ({ index }) => {
      const ring = this.#ring(index);
      await session.stop();
      ring.stop();
      session.changedMore();
      return REQUEST.getVringBase.answer!.encode({ index, num: ring.base });
    });
    on(REQUEST.setVringKick, (value, request) =>
      this.#change(Number(value & VRING_INDEX_MASK), (ring) => {
        const fd = takeFd(value, request);
        if (fd === undefined) throw broken(`ring ${ring.index} has no eventfd for kicks, and nobody here polls rings`);
        ring.setKick(fd, () => session.onKick(ring.index));
      }),
    );
    on(REQUEST.setVringCall, (value, request) =>
      this.#ring(Number(value & VRING_INDEX_MASK)).setCall(takeFd(value, request)),
    );
    on(REQUEST.setVringErr, (value, request) =>
      this.#ring(Number(value & VRING_INDEX_MASK)).setErr(takeFd(value, request)),
    );
    on(REQUEST.setVringEnable, ({ index, num }) => {
      const ring = this.#ring(index);
      if (ring.enabled === (num !== 0)) return;
      return this.#change(index, () => void (ring.enabled = num !== 0));
    });

    on(REQUEST.getConfig, ({ offset, bytes }) => {
      const content = bytes.map((_, i) => this.#device.readConfig(offset + i, 1));
      return REQUEST.getConfig.answer!.encode({ offset, bytes: content });
    });
    on(REQUEST.setConfig, ({ offset, bytes }) => {
      bytes.forEach((byte, i) => this.#device.writeConfig(offset + i, 1, byte));
    });
    this.#handlers.set(REQUEST.setBackendReqFd.id, ({ fds }) => {
      const fd = fds[0];
      if (fd === undefined) throw broken('its SET_BACKEND_REQ_FD came without a descriptor');
      const socket = native(() => new (addon().UnixSocket)('adopt', fd));
      fds.shift();
      this.#channel?.close();
      // Its answers, should it send some, are of no interest; that it closes the channel is not either.
      this.#channel = new MessageSocket(
        socket,
        () => {},
        () => {},
      );
    });
  }

  #ring(index: number): Vring {
    const ring = this.#session.rings[index];
    if (!ring) throw broken(`there is no ring ${index}; the device has ${this.#session.rings.length}`);
    return ring;
  }

  /** Changes a ring; a device that runs on it stops before. */
  async #change(index: number, change: (ring: Vring) => void): Promise<void> {
    const ring = this.#ring(index);
    if (ring.started) await this.#session.stop();
    change(ring);
    if (ring.started) this.#session.changed();
  }
}

const u64 = REQUEST.setFeatures.query;

/** The descriptor of a request that has one, or says that it has none. Whoever keeps it takes it out of the request. */
function takeFd(value: bigint, { fds }: Request): number | undefined {
  if (value & VRING_NO_FD) return undefined;
  if (fds.length !== 1) throw broken(`a request for one descriptor came with ${fds.length}`);
  return fds.shift();
}

const broken = (what: string) => new VmmError('BACKEND_FAILED', `the frontend broke the protocol: ${what}`);
