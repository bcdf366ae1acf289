/**
 * What the nested host and the process inside it that runs commands say to each other over one byte stream (a
 * virtio-serial port, or a Unix socket where a session is shared). Frames of many commands interleave:
 *
 *     u32 length of the payload, u32 id of the command, u8 kind, payload        (little endian)
 */
export const Frame = {
  Hello: 0, // inside -> outside, once: ready for commands
  Run: 1, // outside -> inside: JSON of RunRequest
  Stdin: 2, // outside -> inside: bytes; an empty payload ends the input
  Kill: 3, // outside -> inside: a signal's name, for the command and all its children
  Stdout: 4, // inside -> outside: bytes
  Stderr: 5, // inside -> outside: bytes
  Exit: 6, // inside -> outside: JSON of RunExit; the last frame with this id
} as const;

export interface RunRequest {
  command: string[];
  cwd: string;
  env: Record<string, string>;
  /** False connects the command's standard input to /dev/null. */
  stdin: boolean;
  /** Gives the command a terminal of this size; its standard error is then part of its standard output. */
  tty?: { columns: number; rows: number };
}

export interface RunExit {
  exitCode: number;
  /** The signal that ended the command: the exit code is then 128 and the signal's number. */
  signal?: string;
  /** Why the command could not be started or its result not be known. */
  error?: string;
}

const HEADER_BYTES = 4 + 4 + 1;
// A frame is held in memory whole: a peer that has lost step must not make us wait for 4 GiB.
const MAX_PAYLOAD_BYTES = 64 << 20;

export interface ReceivedFrame {
  kind: number;
  id: number;
  payload: Buffer;
}

export function encodeFrame(kind: number, id: number, payload: Uint8Array | string = ''): Buffer {
  const bytes = typeof payload === 'string' ? Buffer.from(payload) : payload;
  const frame = Buffer.allocUnsafe(HEADER_BYTES + bytes.length);
  frame.writeUInt32LE(bytes.length, 0);
  frame.writeUInt32LE(id, 4);
  frame.writeUInt8(kind, 8);
  frame.set(bytes, HEADER_BYTES);
  return frame;
}

/** Cuts a byte stream into frames. */
export class FrameDecoder {
  #chunks: Buffer[] = [];
  #sizeBytes = 0;

  /** @returns The frames that are complete now, in order. */
  push(chunk: Buffer): ReceivedFrame[] {
    this.#chunks.push(chunk);
    this.#sizeBytes += chunk.length;
    const frames: ReceivedFrame[] = [];
    while (this.#sizeBytes >= HEADER_BYTES) {
      if (this.#chunks[0].length < HEADER_BYTES) this.#join();
      const payloadBytes = this.#chunks[0].readUInt32LE(0);
      if (payloadBytes > MAX_PAYLOAD_BYTES)
        throw new RangeError(`a frame of ${payloadBytes} bytes: the stream is damaged`);
      const frameBytes = HEADER_BYTES + payloadBytes;
      if (this.#sizeBytes < frameBytes) break;
      // Joined only when a frame is whole, so that a large one is not copied with every chunk.
      if (this.#chunks[0].length < frameBytes) this.#join();
      const all = this.#chunks[0];
      frames.push({
        kind: all.readUInt8(8),
        id: all.readUInt32LE(4),
        payload: all.subarray(HEADER_BYTES, frameBytes),
      });
      this.#chunks[0] = all.subarray(frameBytes);
      this.#sizeBytes -= frameBytes;
    }
    return frames;
  }

  #join(): void {
    this.#chunks = [Buffer.concat(this.#chunks)];
  }
}
