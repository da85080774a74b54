// Stands for libnvrtc.so in tests of `sinter kernels compile`: each entry point of a program gets a log like that of ptxas.
//
// FAKE_REGISTERS, FAKE_SPILL and FAKE_WARNING change the numbers. Without COMPLETE the library lacks functions, as an old one does.
#include <stdlib.h>
#include <string.h>
#include <string>

struct Program {
  std::string source, log, arch;
};

extern "C" {
int nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 0; return 0; }
const char* nvrtcGetErrorString(int) { return "an error"; }
#ifdef COMPLETE
int nvrtcGetNumSupportedArchs(int* n) { *n = 3; return 0; }
int nvrtcGetSupportedArchs(int* out) { out[0] = 80; out[1] = 90; out[2] = 100; return 0; }
int nvrtcCreateProgram(Program** out, const char* source, const char*, int, const char* const*, const char* const*) {
  *out = new Program{source, "", ""};
  return 0;
}
int nvrtcDestroyProgram(Program** p) { delete *p; *p = nullptr; return 0; }
int nvrtcCompileProgram(Program* p, int n, const char* const* options) {
  const char *registers = getenv("FAKE_REGISTERS"), *spill = getenv("FAKE_SPILL"), *warning = getenv("FAKE_WARNING");
  for (int i = 0; i < n; i++) {
    if (!strncmp(options[i], "--gpu-architecture=", 19)) p->arch = options[i] + 19;
  }
  if (warning) p->log += std::string(warning) + "\n\n";
  const char* mark = "(const __grid_constant__";
  for (size_t at = 0; (at = p->source.find(mark, at)) != std::string::npos; at++) {
    size_t start = p->source.rfind(' ', at);
    std::string name = p->source.substr(start + 1, at - start - 1);
    p->log += "ptxas info    : Compiling entry function '" + name + "' for '" + p->arch + "'\n";
    p->log += "ptxas         .     0 bytes stack frame, " + std::string(spill ? spill : "0") + " bytes spill stores, 0 bytes spill loads\n";
    p->log += "ptxas info    : Used " + std::string(registers ? registers : "32") + " registers, used 1 barriers, 128 bytes smem\n";
  }
  return 0;
}
int nvrtcGetProgramLogSize(Program* p, size_t* n) { *n = p->log.size() + 1; return 0; }
int nvrtcGetProgramLog(Program* p, char* out) { memcpy(out, p->log.c_str(), p->log.size() + 1); return 0; }
int nvrtcGetCUBINSize(Program*, size_t* n) { *n = 1; return 0; }
int nvrtcGetCUBIN(Program*, char* out) { *out = 0; return 0; }
int nvrtcGetPTXSize(Program*, size_t* n) { *n = 1; return 0; }
int nvrtcGetPTX(Program*, char* out) { *out = 0; return 0; }
#endif
}
