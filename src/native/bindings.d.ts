declare module 'bindings' {
  /** @returns The addon's exports. Throws an Error with `tries`, the paths it looked at, when there is none. */
  export default function bindings(options: { bindings: string; module_root: string }): unknown;
}
