-- One request, the same bytes every time, or several in turn; its figures as one line of JSON.
-- Arguments: method, files with the bodies and commas between (or -), file with a header per line.

local function read(path)
   local file = assert(io.open(path, "rb"))
   local bytes = file:read("*a")
   file:close()
   return bytes
end

local function take_turns(bodies)
   local requests, last = {}, 0
   for place, body in ipairs(bodies) do
      requests[place] = wrk.format(nil, nil, nil, body)
   end
   request = function()
      last = last % #requests + 1
      return requests[last]
   end
end

function init(args)
   wrk.method = args[1]
   for line in io.lines(args[3]) do
      local name, value = line:match("^([^:]+): (.*)$")
      wrk.headers[name] = value
   end
   local bodies = {}
   if args[2] ~= "-" then
      for path in args[2]:gmatch("[^,]+") do
         bodies[#bodies + 1] = read(path)
      end
   end
   wrk.body = bodies[1]
   if #bodies > 1 then
      take_turns(bodies)
   end
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      'figures {"requests": %d, "duration_us": %d, "bytes": %d, "mean_us": %.1f, ' ..
      '"p50_us": %d, "p90_us": %d, "p99_us": %d, "max_us": %d, ' ..
      '"errors": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}\n',
      summary.requests, summary.duration, summary.bytes, latency.mean,
      latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max,
      errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
