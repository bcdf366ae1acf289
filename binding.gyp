{
  "targets": [
    {
      "target_name": "vmexit",
      # One list of sources for this file and CMakeLists.txt.
      "sources": ["<!@(cat native/sources.txt)"],
      "include_dirs": ["native", "<!@(node -p \"require('node-addon-api').include_dir\")"],
      # Where a terminated worker takes no exception any more, throwing one is let go instead of ending the process.
      "defines": ["NAPI_VERSION=9", "NAPI_CPP_EXCEPTIONS", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"],
      "cflags_cc!": ["-fno-exceptions", "-fno-rtti"],
      "cflags_cc": ["-fexceptions", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-fvisibility=hidden"],
      # The kicker thread and the signal handler outlive the environments that loaded the addon: never unload it.
      "ldflags": ["-Wl,-z,nodelete"]
    }
  ]
}
