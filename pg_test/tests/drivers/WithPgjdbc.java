// PgJDBC as a client, see with_psycopg.py. Usage: java -cp postgresql.jar WithPgjdbc.java PORT.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.sql.Statement;
import org.postgresql.util.PSQLException;
import org.postgresql.util.ServerErrorMessage;

class WithPgjdbc {
    static final BufferedReader INPUT = new BufferedReader(new InputStreamReader(System.in));

    static String json(String text) {
        if (text == null) return "null";
        String escaped = text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n").replace("\t", "\\t");
        return '"' + escaped + '"';
    }

    static String seen(String at, SQLException error) {
        ServerErrorMessage server = error instanceof PSQLException
            ? ((PSQLException) error).getServerErrorMessage() : null;
        return "[{\"at\":" + json(at) + ",\"class\":" + json(error.getClass().getSimpleName())
            + ",\"sqlstate\":" + json(error.getSQLState()) + ",\"message\":" + json(error.getMessage())
            + ",\"detail\":" + json(server == null ? null : server.getDetail())
            + ",\"hint\":" + json(server == null ? null : server.getHint()) + "}]";
    }

    static String shown(String what, String url) throws Exception {
        Connection session;
        try {
            session = DriverManager.getConnection(url, "alice", "");
        } catch (SQLException error) {
            return seen("login", error);
        }
        try (session; Statement statement = session.createStatement()) {
            statement.execute("SELECT 1");
            if (what.equals("idle")) {
                System.out.println("in");
                INPUT.readLine();
                statement.execute("SELECT 2");
            } else if (what.equals("busy")) {
                statement.execute("SELECT pg_sleep(60)");
            }
            return "[]";
        } catch (SQLException error) {
            return seen("query", error);
        }
    }

    public static void main(String[] arguments) throws Exception {
        String url = "jdbc:postgresql://127.0.0.1:" + arguments[0] + "/postgres";
        for (String what; (what = INPUT.readLine()) != null; ) {
            System.out.println(shown(what, url));
        }
    }
}
