# cmake -DNM=... -DOBJECTS=a.o;b.o -P check_symbols.cmake
#
# Each file of an instruction set exports its table and nothing else. An inline function that two of
# them emitted would be linked once, and a plain CPU could meet the copy built for AVX-512.
set(checked 0)
foreach(object IN LISTS OBJECTS)
  if(NOT object MATCHES "/targets/([a-z0-9]+)\\.cc\\.o")
    continue()
  endif()
  set(name ${CMAKE_MATCH_1})
  execute_process(COMMAND ${NM} -C --defined-only --extern-only ${object}
    OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(STRIP "${symbols}" symbols)
  if(NOT symbols MATCHES "^[0-9a-f]+ [A-Z] jaxsparse::cpu::k[A-Za-z0-9]+Tiles$")
    message(FATAL_ERROR "${name} must export its table only, but exports\n${symbols}")
  endif()
  math(EXPR checked "${checked} + 1")
endforeach()
if(checked EQUAL 0)
  message(FATAL_ERROR "no file of an instruction set among ${OBJECTS}")
endif()
message(STATUS "${checked} files export one table each")
