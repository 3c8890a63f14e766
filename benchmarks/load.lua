-- The load that wrk sends: wrk -s load.lua URL -- FILE [count START | random BELOW SEED |
-- runs SIZE NAME]
-- FILE holds a body with a mark of ten `#` in it, which becomes a number: 0 in every
-- request, one more each time, or any below BELOW. Of runs, each has SIZE requests with a 0,
-- and is called NAME-0, NAME-1, and so on. One wrk thread.

local function number(i) return string.format("%010d", i) end

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local body = file:read("*a")
  file:close()
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  if not args[2] then
    wrk.body = body:gsub("##########", number(0))
    return
  end
  if args[2] == "runs" then
    local size, path, i, run = tonumber(args[3]), wrk.path, -1, -1
    body = body:gsub("##########", number(0))
    local whole
    function request()
      i = i + 1
      if math.floor(i / size) > run then
        run = math.floor(i / size)
        whole = wrk.format("POST", "/run/" .. args[4] .. "-" .. run .. path, nil, body)
      end
      return whole
    end
    return
  end
  -- The length never changes, so the head is made once.
  local whole = wrk.format("POST", nil, nil, body)
  local from, to = assert(whole:find("##########", 1, true))
  local head, tail = whole:sub(1, from - 1), whole:sub(to + 1)
  if args[2] == "count" then
    local i = tonumber(args[3]) - 1
    function request()
      i = i + 1
      return head .. number(i) .. tail
    end
  else
    local below = tonumber(args[3])
    math.randomseed(tonumber(args[4]))
    function request()
      return head .. number(math.random(0, below - 1)) .. tail
    end
  end
end
