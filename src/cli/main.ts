#!/usr/bin/env node
import { CommanderError } from 'commander';
import { VmmError } from '../errors.js';
import { EXIT } from './exit-status.js';
import { complain } from './output.js';
import { makeProgram } from './program.js';
import { Interrupted } from './signals.js';

try {
  process.exitCode = EXIT.OK;
  await makeProgram((status) => (process.exitCode = status)).parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    // Commander has printed its message, or what was asked for (--help, --version).
    process.exitCode = error.exitCode === 0 ? EXIT.OK : EXIT.USAGE;
  } else if (error instanceof Interrupted) {
    process.exitCode = error.status;
  } else if (error instanceof VmmError) {
    complain(error.message);
    process.exitCode = error.code === 'INVALID_ARGUMENT' ? EXIT.USAGE : EXIT.ERROR;
  } else {
    throw error;
  }
}
// Standard input may still be open, and would keep the process.
process.exit();
