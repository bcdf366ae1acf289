import { describe, expect, it } from 'vitest';
import { OUTPUT_WINDOW_BYTES, OutputWindow } from '../../../src/machine/worker-protocol.js';

describe("the window of a console's output", () => {
  const pair = () => {
    const shared = new SharedArrayBuffer(OutputWindow.BYTES);
    return [new OutputWindow(shared), new OutputWindow(shared)] as const;
  };

  it('gives as much as there is, and tells the reader when somebody waits for more', () => {
    const [writer, reader] = pair();
    expect(writer.reserve(OUTPUT_WINDOW_BYTES - 10)).toBe(OUTPUT_WINDOW_BYTES - 10);
    expect(writer.reserve(4096)).toBe(10);
    expect(reader.consume(0)).toBe(false);
    expect(writer.reserve(4096)).toBe(0);
    expect(reader.consume(100)).toBe(true);
    expect(reader.consume(100)).toBe(false);
    expect(writer.reserve(4096)).toBe(200);
  });

  it('goes on past 2^32 bytes', () => {
    const [writer, reader] = pair();
    for (let sent = 0; sent < 2 ** 32 + OUTPUT_WINDOW_BYTES; sent += OUTPUT_WINDOW_BYTES) {
      expect(writer.reserve(OUTPUT_WINDOW_BYTES)).toBe(OUTPUT_WINDOW_BYTES);
      expect(writer.reserve(1)).toBe(0);
      expect(reader.consume(OUTPUT_WINDOW_BYTES)).toBe(true);
    }
  });
});
