import { inspect } from 'node:util';
import { VmmError, type VmmErrorCode } from '../errors.js';

/** An error that crosses threads: structured cloning keeps neither the class nor the code. */
export interface PlainError {
  message: string;
  code?: VmmErrorCode;
  operation?: string;
  errno?: string;
  stack?: string;
}

export function toPlainError(error: unknown): PlainError {
  // Anything may be thrown, and not all of it has a string.
  if (!(error instanceof Error)) return { message: `what was thrown is no Error: ${inspect(error)}` };
  const { message, stack } = error;
  const { code, operation, errno } = error instanceof VmmError ? error : {};
  return {
    message,
    ...(stack !== undefined && { stack }),
    ...(code !== undefined && { code }),
    ...(operation !== undefined && { operation }),
    ...(errno !== undefined && { errno }),
  };
}

/** @param otherwise The code of an error that was no VmmError. */
export function fromPlainError(
  { message, code, operation, errno, stack }: PlainError,
  otherwise: VmmErrorCode = 'MACHINE_FAILED',
): VmmError {
  const details = { ...(operation !== undefined && { operation }), ...(errno !== undefined && { errno }) };
  const error = new VmmError(code ?? otherwise, message, details);
  if (stack !== undefined) error.stack = stack;
  return error;
}
