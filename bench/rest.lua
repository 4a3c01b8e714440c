-- The requests of workload.py by REST, for wrk. The arguments after `--` are the fields of
-- Workload. The last two lines of the output are the body of the last response, and JSON.
--
-- Requires a single thread of wrk, which numbers the requests.

local FIRST_DAY, DAY, HOUR = 1893456000, 86400, 3600
local STRIDE, SLOTS, WINDOW = 104729, 2000, 20

local YEAR, SHIFTS, WEEKS = 366 * DAY, 9973, 382003

local organization, organizations, stored, resources

local function name(number)
  return organization .. "-" .. number % organizations
end

local function time(seconds)
  return os.date("!%Y-%m-%dT%H:%M:%SZ", seconds)
end

local function post(number, start, finish)
  local body = '{"id":"' .. number .. '","organizationId":"' .. name(number) ..
    '","start":"' .. time(start) .. '","end":"' .. time(finish) .. '"}'
  return wrk.format("POST", "/api/appointments", nil, body)
end

local function stored_day(number, days)
  return math.floor(number / organizations) * STRIDE % days
end

local function window(number, start)
  return wrk.format("GET", "/api/appointments?organizationId=" .. name(number) ..
    "&from=" .. time(start) .. "&to=" .. time(start + WINDOW * DAY))
end

local function upsert(number)
  local day = number * STRIDE % stored
  local start = FIRST_DAY + day * DAY + HOUR + math.floor(number / stored)
  return post(number, start, start + 1)
end

local function free(number, count, start, length, more)
  local ids = {}
  for resource = 1, count do
    table.insert(ids, "&resourceId=resource-" .. resource)
  end
  return wrk.format("GET", "/api/availability?organizationId=" .. name(number) ..
    "&from=" .. time(start) .. "&to=" .. time(start + length) .. table.concat(ids) .. more)
end

local operations = {
  upsert = upsert,
  submit = upsert,
  contend = function(number)
    local start = FIRST_DAY + number * STRIDE % SLOTS * 600
    return post(number, start, start + 1800)
  end,
  get = function(number)
    return wrk.format("GET", "/api/appointments/stored-" .. stored_day(number, stored) ..
      "?organizationId=" .. name(number))
  end,
  list = function(number)
    return window(number, FIRST_DAY + stored_day(number, stored - WINDOW + 1) * DAY)
  end,
  page = function(number)
    return window(number, FIRST_DAY)
  end,
  availability = function(number)
    return free(number, resources, FIRST_DAY - number % SHIFTS * 60, YEAR, "")
  end,
  calendar = function(number)
    return free(number, resources, FIRST_DAY, YEAR, "")
  end,
  booking = function(number)
    return free(number, 10, FIRST_DAY + number % WEEKS * 60, 7 * DAY,
      "&openingHours=Mo-Fr%2009:00-17:00&timeZone=Europe/Berlin" ..
      "&duration=1800s&granularity=900s")
  end,
}

-- wrk calls the functions below by name; `setup` and `done` run in a separate Lua state.

function init(arguments)
  wrk.headers["Content-Type"] = "application/json"
  operation = operations[arguments[1]]
  if arguments[1] == "submit" then wrk.headers["Prefer"] = "respond-async" end
  organization = arguments[2]
  organizations, stored = tonumber(arguments[3]), tonumber(arguments[4])
  next_number, resources = tonumber(arguments[5]), tonumber(arguments[6])
end

function request()
  local number = next_number
  next_number = number + 1
  return operation(number)
end

statuses = {}
last_body = ""

function response(status, _, body)
  statuses[status] = (statuses[status] or 0) + 1
  last_body = body
end

local thread

function setup(it)
  thread = it
end

function done(summary, latency)
  local counts = {}
  for status, count in pairs(thread:get("statuses")) do
    table.insert(counts, string.format('"%d":%d', status, count))
  end
  local errors = summary.errors
  local lost = errors.connect + errors.read + errors.write
  if lost > 0 then table.insert(counts, '"CONNECTION_LOST":' .. lost) end
  if errors.timeout > 0 then table.insert(counts, '"UNANSWERED":' .. errors.timeout) end
  print(thread:get("last_body"))
  print(string.format(
    '{"answers":{%s},"seconds":%f,"latency":{"p50":%f,"p95":%f,"p99":%f}}',
    table.concat(counts, ","), summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
