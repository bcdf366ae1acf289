/**
 * Runs a command and draws what it prints as a terminal window, in SVG: light or dark as the reader's system is.
 *
 *   npx tsx scripts/terminal-picture.ts -o docs/demo.svg -- npm start
 *
 * `-o -` writes to standard output. The home directory is shown as `~`, so that a picture says nothing of who made it.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { Command, InvalidArgumentError } from 'commander';
import { drawTerminal } from './terminal-picture/draw.js';

const program = new Command('terminal-picture')
  .description('Run a command and draw what it prints as an SVG picture of a terminal.')
  .argument('<command...>', 'what to run, after `--`; it is shown behind the prompt')
  .requiredOption('-o, --output <file>', 'SVG file to write; - for standard output')
  .option('--columns <n>', 'width of the terminal; longer lines wrap', parseColumns, 108)
  .passThroughOptions()
  .action(main);
await program.parseAsync();

async function main(command: string[], { output, columns }: { output: string; columns: number }): Promise<void> {
  const printed = await run(command, columns);
  const prompt = `\x1b[32m$\x1b[39m \x1b[1m${command.join(' ')}\x1b[22m\n`;
  const svg = drawTerminal(prompt + printed.replaceAll(homedir(), '~').trimEnd(), {
    columns,
    title: command.join(' '),
  });
  if (output === '-') process.stdout.write(svg);
  else writeFileSync(output, svg);
}

/** @returns Standard output and standard error as they would mix on a terminal. */
async function run([file, ...args]: string[], columns: number): Promise<string> {
  const env = {
    ...process.env,
    FORCE_COLOR: '1',
    COLUMNS: String(columns),
    // The user's own npm settings are not the picture's subject, nor is the version that npm would like to be.
    npm_config_loglevel: 'error',
    npm_config_update_notifier: 'false',
  };
  // One pipe for both streams keeps their order.
  const child = spawn('sh', ['-c', 'exec "$@" 2>&1', 'sh', file, ...args], {
    env,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  child.stdout.setEncoding('utf8');
  let printed = '';
  child.stdout.on('data', (text: string) => {
    printed += text;
    process.stderr.write(text);
  });
  const [status] = (await once(child, 'close')) as [number | null];
  if (status !== 0) throw new Error(`${file} ended with status ${String(status)}: no picture was written`);
  return printed;
}

function parseColumns(text: string): number {
  const columns = Number(text);
  if (!Number.isInteger(columns) || columns < 20 || columns > 400) {
    throw new InvalidArgumentError('Give a whole number from 20 to 400.');
  }
  return columns;
}
