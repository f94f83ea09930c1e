# Finds nvcc and enables CUDA, or says why not.
#
#   JAXSPARSE_CUDA                 auto      CUDA kernels where there is an nvcc that works
#                                  required  an error that says why there are none
#                                  packages  required; pip's build environment has nvcc for it
#                                  off       no CUDA kernels
#   JAXSPARSE_CUDA_ARCHITECTURES   what to compile for; empty: all that is supported
#   JAXSPARSE_CUDA_STRICT          for those who change kernels
#   CMAKE_CUDA_COMPILER, CUDACXX   an nvcc of another place than those looked at
#
# Afterwards JAXSPARSE_CUDA_ABSENT is empty and CUDA is enabled, or it holds a sentence.

set(JAXSPARSE_CUDA auto CACHE STRING "CUDA kernels: auto, required, packages or off")
set(JAXSPARSE_CUDA_ARCHITECTURES "" CACHE STRING "CUDA architectures; empty: all supported")
option(JAXSPARSE_CUDA_STRICT "Make errors of what ptxas warns of, such as spills" OFF)

# sm_80 code would run on 8.6 and 8.9; wgmma is for 9.0a alone. The PTX of 8.0 is for the driver to
# compile on whatever is newer than all of these.
set(all_architectures 80 86-real 89-real 90a-real 100-real 120-real)
set(oldest_nvcc 12.8)  # the first that knows sm_120

set(JAXSPARSE_CUDA_ABSENT "")

# Every nvcc that a user may mean, best first: named, in PATH, of a toolkit, of Python packages
# (nvidia-cuda-nvcc and its companions). Under pip's build isolation those of the environment
# that is installed into count, too.
function(jaxsparse_list_nvcc found)
  set(named ${CMAKE_CUDA_COMPILER} $ENV{CUDACXX})
  if(named)
    list(GET named 0 named)
    set(${found} "${named}" PARENT_SCOPE)
    return()
  endif()
  find_program(in_path nvcc NO_CACHE HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin
               PATHS /usr/local/cuda/bin)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import glob, os, sys, sysconfig
folders = [sysconfig.get_path('purelib'), *sys.path]
found = [nvcc for folder in folders for nvcc in glob.glob(os.path.join(folder, 'nvidia/cu*/bin/nvcc'))]
print(';'.join(dict.fromkeys(found)), end='')"
    OUTPUT_VARIABLE in_python)
  if(NOT in_path)
    set(in_path "")
  endif()
  if(wanted STREQUAL "packages")
    set(all ${in_python} ${in_path})
  else()
    set(all ${in_path} ${in_python})
  endif()
  set(${found} "${all}" PARENT_SCOPE)
endfunction()

# why: empty if `nvcc` compiles and links a program, else what it said. root: of its toolkit.
function(jaxsparse_try_nvcc nvcc why root)
  execute_process(COMMAND "${nvcc}" --version RESULT_VARIABLE status OUTPUT_VARIABLE version
                  ERROR_VARIABLE complaint)
  if(NOT status EQUAL 0 OR NOT version MATCHES "release ([0-9.]+)")
    set(${why} "${nvcc} does not run: ${complaint}${version}" PARENT_SCOPE)
    return()
  endif()
  if(CMAKE_MATCH_1 VERSION_LESS oldest_nvcc)
    set(${why} "${nvcc} is of CUDA ${CMAKE_MATCH_1}, and ${oldest_nvcc} or newer is needed" PARENT_SCOPE)
    return()
  endif()
  # An nvcc in PATH may be a link or a script; it knows its own place.
  set(folder "${CMAKE_BINARY_DIR}/try_nvcc")
  file(WRITE "${folder}/try.cu"
       "#include <cuda_bf16.h>\n#include <cuda_runtime.h>\n__global__ void f() {}\n"
       "int main() { f<<<1, 1>>>(); return cudaDeviceSynchronize(); }\n")
  execute_process(COMMAND "${nvcc}" --dryrun -c "${folder}/try.cu" ERROR_VARIABLE dryrun
                  OUTPUT_QUIET)
  if(NOT dryrun MATCHES "#\\$ TOP=([^\n]+)")
    set(${why} "${nvcc} does not say where its toolkit is" PARENT_SCOPE)
    return()
  endif()
  get_filename_component(top "${CMAKE_MATCH_1}" REALPATH)
  execute_process(COMMAND "${nvcc}" -ccbin "${CMAKE_CXX_COMPILER}" -arch=sm_80 "-L${top}/lib"
                          -o "${folder}/try" "${folder}/try.cu"
                  RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_VARIABLE complaint)
  if(NOT status EQUAL 0)
    string(STRIP "${complaint}${said}" complaint)
    string(REGEX MATCH "[^\n]+" first "${complaint}")
    set(${why} "${nvcc} cannot compile and link a program: ${first}" PARENT_SCOPE)
    return()
  endif()
  set(${why} "" PARENT_SCOPE)
  set(${root} "${top}" PARENT_SCOPE)
endfunction()

string(TOLOWER "${JAXSPARSE_CUDA}" wanted)
if(NOT wanted MATCHES "^(auto|required|packages|off)$")
  message(FATAL_ERROR "JAXSPARSE_CUDA is auto, required, packages or off, got ${JAXSPARSE_CUDA}.")
endif()

if(wanted STREQUAL "off")
  set(JAXSPARSE_CUDA_ABSENT "JAXSPARSE_CUDA=off when it was installed")
else()
  set(JAXSPARSE_CUDA_ABSENT "no nvcc was found when it was installed")
  jaxsparse_list_nvcc(candidates)
  foreach(nvcc IN LISTS candidates)
    jaxsparse_try_nvcc("${nvcc}" why JAXSPARSE_CUDA_ROOT)
    if(NOT why)
      set(JAXSPARSE_CUDA_ABSENT "")
      set(CMAKE_CUDA_COMPILER "${nvcc}")
      break()
    elseif(JAXSPARSE_CUDA_ABSENT MATCHES "^no nvcc")
      set(JAXSPARSE_CUDA_ABSENT "${why}")
    endif()
  endforeach()
  if(JAXSPARSE_CUDA_ABSENT AND NOT wanted STREQUAL "auto")
    message(FATAL_ERROR
      "jaxsparse: CUDA kernels are required, and there are none: ${JAXSPARSE_CUDA_ABSENT}. Install "
      "CUDA 13.0, or take it from PyPI by JAXSPARSE_CUDA=packages, or set JAXSPARSE_CUDA=auto.")
  elseif(candidates AND JAXSPARSE_CUDA_ABSENT)
    message(WARNING "jaxsparse: no CUDA kernels: ${JAXSPARSE_CUDA_ABSENT}.")
  endif()
endif()

if(NOT JAXSPARSE_CUDA_ABSENT)
  set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
  if(JAXSPARSE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES ${JAXSPARSE_CUDA_ARCHITECTURES})
  else()
    set(CMAKE_CUDA_ARCHITECTURES ${all_architectures})
  endif()
  # The Python packages have no lib64, where nvcc looks when CMake tries it.
  set(ENV{LIBRARY_PATH} "${JAXSPARSE_CUDA_ROOT}/lib:$ENV{LIBRARY_PATH}")
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  enable_language(CUDA)
  find_library(JAXSPARSE_CUDART cudart_static REQUIRED NO_DEFAULT_PATH
               PATHS "${JAXSPARSE_CUDA_ROOT}/lib64" "${JAXSPARSE_CUDA_ROOT}/lib"
                     "${JAXSPARSE_CUDA_ROOT}/targets/${CMAKE_SYSTEM_PROCESSOR}-linux/lib")
  message(STATUS "CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES} by ${CMAKE_CUDA_COMPILER}")
endif()
