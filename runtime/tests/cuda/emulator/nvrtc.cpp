// A stand-in for libnvrtc.so in tests: the host's C++ compiler makes a shared library of a program, and the image is its name.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace {
struct Program {
  std::string source, log, image;
  std::vector<std::pair<std::string, std::string>> headers;
};
std::string read(const std::string& path) {
  std::ifstream in(path);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}
std::string include_folder, out_folder;
}  // namespace

extern "C" {
// The folder of emulated.hpp, and the one for libraries.
void emulated_configure(const char* include, const char* out) {
  include_folder = include;
  out_folder = out;
}
int nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 0; return 0; }
int nvrtcGetNumSupportedArchs(int* n) { *n = 3; return 0; }
int nvrtcGetSupportedArchs(int* out) { out[0] = 80; out[1] = 90; out[2] = 100; return 0; }
const char* nvrtcGetErrorString(int code) { return code ? "the host's compiler refused the program" : "success"; }
int nvrtcCreateProgram(Program** out, const char* source, const char*, int n, const char* const* texts, const char* const* names) {
  *out = new Program{source, "", "", {}};
  for (int i = 0; i < n; i++) (*out)->headers.push_back({names[i], texts[i]});
  return 0;
}
int nvrtcDestroyProgram(Program** p) { delete *p; *p = nullptr; return 0; }
int nvrtcCompileProgram(Program* p, int, const char* const*) {
  std::string folder = out_folder + "/XXXXXX";
  if (!mkdtemp(&folder[0])) {
    p->log = "cannot make a folder in " + out_folder;
    return 6;
  }
  for (auto& [name, text] : p->headers) std::ofstream(folder + "/" + name) << text;
  // Each entry point gets a function that takes a pointer to its argument.
  std::string source = "#include \"emulated.hpp\"\n" + p->source, calls;
  std::regex entry("extern \"C\" __global__ void (?:__launch_bounds__\\([^)]*\\) )?([A-Za-z0-9_]+)\\(const __grid_constant__ ([A-Za-z0-9_]+) a\\)");
  for (std::sregex_iterator i(p->source.begin(), p->source.end(), entry), end; i != end; ++i) {
    calls += "extern \"C\" void emulated_call_" + (*i)[1].str() + "(const void* a) { " + (*i)[1].str() + "(*(const " + (*i)[2].str() + "*)a); }\n";
  }
  std::ofstream(folder + "/program.cpp") << source << calls;
  std::string library = folder + "/program.so";
  std::string command = "c++ -std=c++17 -O1 -fPIC -shared -w -fno-strict-aliasing -ffp-contract=off -I" + folder + " -I" + include_folder +
                        " " + folder + "/program.cpp -o " + library + " 2> " + folder + "/log";
  int code = system(command.c_str());
  p->log = read(folder + "/log");
  if (code != 0) return 6;
  p->image = "emulated:" + library;
  return 0;
}
int nvrtcGetProgramLogSize(Program* p, size_t* n) { *n = p->log.size() + 1; return 0; }
int nvrtcGetProgramLog(Program* p, char* out) { memcpy(out, p->log.c_str(), p->log.size() + 1); return 0; }
int nvrtcGetCUBINSize(Program* p, size_t* n) { *n = p->image.size() + 1; return 0; }
int nvrtcGetCUBIN(Program* p, char* out) { memcpy(out, p->image.c_str(), p->image.size() + 1); return 0; }
int nvrtcGetPTXSize(Program* p, size_t* n) { return nvrtcGetCUBINSize(p, n); }
int nvrtcGetPTX(Program* p, char* out) { return nvrtcGetCUBIN(p, out); }
}
